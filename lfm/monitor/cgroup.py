"""Control groups of both versions: where this process may make some, and what the files of one say.

Knows no slot and no call.  Removes groups only by ``rmdir``, which takes nothing but an empty one, and only those
whose name it made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

PREFIX = "lfm."


class Place(NamedTuple):
    """Where groups can be made: one directory for everything in version 2, one for each controller in version 1."""

    version: int
    memory: str
    cpu: str  # empty: CPU time is not counted by group
    resets: bool = False  # whether the peak of a group can be set back


class Mount(NamedTuple):
    version: int
    controllers: tuple[str, ...]
    root: str
    point: str


def mounts(mountinfo: str) -> list[Mount]:
    """What ``/proc/self/mountinfo`` says of control groups."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if len(words) > 4 and kind and kind[0] in ("cgroup", "cgroup2"):
            controllers = () if kind[0] == "cgroup2" else tuple(kind[-1].split(","))
            found.append(Mount(2 if kind[0] == "cgroup2" else 1, controllers, words[3], words[4]))
    return found


def own(mountinfo: str, groups: str) -> dict[str, str]:
    """The directories of our own groups by controller; "" is version 2's.  ``groups``: our ``/proc/self/cgroup``."""
    found: dict[str, str] = {}
    at = mounts(mountinfo)
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            for mount in at:
                if (name in mount.controllers if name else mount.version == 2) and (inside := _inside(mount, path)):
                    found.setdefault(name, inside)
    return found


def _inside(mount: Mount, path: str) -> str:
    if ".." in path.split("/"):  # above what this mount or namespace shows
        return ""
    if mount.root != "/":
        if path != mount.root and not path.startswith(mount.root + "/"):
            return mount.point  # a container: what is mounted is ours
        path = path[len(mount.root) :]
    return mount.point + path.rstrip("/")


def candidates(directories: dict[str, str]) -> list[Place]:
    """Where groups might be made: in our own group; in version 2, where only leaves hold processes, beside it."""
    places = []
    if memory := directories.get("memory", ""):
        places.append(Place(1, memory, directories.get("cpuacct", "")))
    if ours := directories.get("", ""):
        for directory in (ours, os.path.dirname(ours)):
            if "memory" in read(f"{directory}/cgroup.subtree_control").split() and os.access(directory, os.W_OK):
                places.append(Place(2, directory, directory))
                break
    return places


def find() -> tuple[Place | None, str]:
    """A place that has been tried out, or why there is none."""
    why = "no control group that counts memory is ours to divide"
    for place in candidates(own(read("/proc/self/mountinfo"), read("/proc/self/cgroup"))):
        try:
            return try_out(place), ""
        except OSError as error:
            why = f"{place.memory}: {error.strerror or error}"
    return None, why


def divide() -> Callable[[], None]:
    """Make our own group fit to be divided, where that takes no more than stepping down into a leaf of it.

    In version 2 a group that is divided holds no process itself.  So: only if nobody but us is in it, a service's or
    a batch step's own process.  Returns what undoes it.
    """
    directories = own(read("/proc/self/mountinfo"), read("/proc/self/cgroup"))
    ours, pid = directories.get("", ""), os.getpid()
    alone = ours and read(f"{ours}/cgroup.procs").split() == [str(pid)]
    if candidates(directories) or not alone or "memory" not in read(f"{ours}/cgroup.controllers").split():
        return lambda: None
    leaf = f"{ours}/{PREFIX}{pid}.daemon"

    def undo() -> None:
        with suppress(OSError):
            _write(f"{ours}/cgroup.subtree_control", "-memory")
        with suppress(OSError):
            _write(f"{ours}/cgroup.procs", str(pid))
        _remove(leaf)

    try:
        os.mkdir(leaf)
        _write(f"{leaf}/cgroup.procs", str(pid))
        _write(f"{ours}/cgroup.subtree_control", "+memory")
    except OSError:
        undo()
        return lambda: None
    return undo


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def try_out(place: Place) -> Place:
    """Make a group, see that it counts what a process in it takes, remove it.  OSError if any of that fails."""
    size = 4 << 20
    group = Group(place, f"{PREFIX}{os.getpid()}.try")
    try:
        pid = os.fork()
        if pid == 0:
            try:
                group.enter()
                held = bytearray(size)
                held[::4096] = b"x" * (size // 4096)
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise OSError("a process cannot enter a group made there")
        if group.peak() < size:
            raise OSError("a group made there does not count memory")
        return place._replace(resets=group.reset())
    finally:
        group.close()


class Group:
    """One group: its directories and kept descriptors.  OSError if it cannot be made."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.folders = list(dict.fromkeys(f"{parent}/{name}" for parent in (place.memory, place.cpu) if parent))
        self.entrances: list[int] = []
        self._open: list[int] = []
        names = _V2 if place.version == 2 else _V1
        try:
            for folder in self.folders:
                os.mkdir(folder)
                self.entrances.append(os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            self._usage, self._stat, self._events = (self._file(self.folders[0], name) for name in names[1:4])
            try:
                self._peak, self._can_reset = self._file(self.folders[0], names[0], os.O_RDWR), True
            except PermissionError:  # kernels before 6.12 let nobody write to memory.peak
                self._peak, self._can_reset = self._file(self.folders[0], names[0]), False
            self._cpu = self._file(self.folders[-1], names[4]) if place.cpu else -1
        except OSError:
            self.close()
            raise

    def _file(self, folder: str, name: str, how: int = os.O_RDONLY) -> int:
        fd = os.open(f"{folder}/{name}", how | os.O_CLOEXEC)
        self._open.append(fd)
        return fd

    def enter(self) -> None:
        """Put this process in it, and so all that it forks."""
        for fd in self.entrances:
            os.write(fd, b"0")

    def usage(self) -> int:
        """Bytes in use now, page cache included."""
        return int(os.pread(self._usage, 32, 0))

    def peak(self) -> int:
        """The largest usage since it was made or set back."""
        return int(os.pread(self._peak, 32, 0))

    def reset(self) -> bool:
        """Set the peak back to what is in use now; whether that can be done."""
        if self._can_reset:
            try:
                os.pwrite(self._peak, b"0", 0)
            except OSError:
                self._can_reset = False
        return self._can_reset

    def cache(self) -> int:
        """Bytes of files among what is in use: the kernel gives them back when somebody needs room."""
        said = dict(line.split() for line in os.pread(self._stat, 8192, 0).splitlines())
        return max(0, int(said.get(b"cache" if self.place.version == 1 else b"file", 0)) - int(said.get(b"shmem", 0)))

    def oom_kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        for line in os.pread(self._events, 512, 0).splitlines():
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
        return 0

    def cpu(self) -> float:
        """CPU seconds of all that ever was in it; 0 where that is not counted."""
        if self._cpu < 0:
            return 0.0
        data = os.pread(self._cpu, 64, 0)
        return int(data) / 1e9 if self.place.version == 1 else int(data.split()[1]) / 1e6

    def forget(self) -> None:
        """Close its files, and leave it as it is."""
        for fd in self.entrances + self._open:
            os.close(fd)
        self.entrances, self._open = [], []

    def close(self) -> bool:
        """Remove it, as far as it is empty; whether nothing of it stays."""
        self.forget()
        self.folders = [folder for folder in self.folders if not _remove(folder)]
        return not self.folders


_V1 = ("memory.max_usage_in_bytes", "memory.usage_in_bytes", "memory.stat", "memory.oom_control", "cpuacct.usage")
_V2 = ("memory.peak", "memory.current", "memory.stat", "memory.events", "cpu.stat")


def sweep(place: Place, prefix: str) -> None:
    """Remove the empty groups whose names begin so: of a monitor that could not."""
    _sweep(place, lambda name: name.startswith(prefix))


def sweep_dead(place: Place) -> None:
    """Remove what daemons left that were killed: the groups are named by their process."""

    def dead(name: str) -> bool:
        pid = name[len(PREFIX) :].partition(".")[0]
        return name.startswith(PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}")

    _sweep(place, dead)


def _sweep(place: Place, which: Callable[[str], bool]) -> None:
    for parent in {place.memory, place.cpu} - {""}:
        with suppress(OSError):
            for name in filter(which, os.listdir(parent)):
                _remove(f"{parent}/{name}")


def _remove(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""

"""Where a worker keeps things on its node: the cache that the user's workers share, and its own directory.

::

    <scratch>/lfm-<uid>/          0700, ours
      blobs/<digest>              arguments, code, tarballs; each worker that uses one has a link of its own
      environments/<digest>/      unpacked
      overlays/<digest>/
      uses/<kind>-<digest>        locked (shared) by every worker that uses it; its size; its time is that of the last use
      cpus                        locked by the worker that gives its calls CPUs of their own
      workers/<name>/             one worker's own: gone when it ends, or when the next one finds its owner dead
        owner                     locked while the worker lives
        blobs/  results/  sandboxes/  runtime/  functions/

What is removed here is always a direct child of a directory that this module made, named by a digest that was
checked or by this module; nothing above or beside it is ever changed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lfm import locks
from lfm.errors import LfmError
from lfm.protocol.ids import Digest
from lfm_worker.core.items import Item, Kind, is_digest
from lfm_worker.shell import unpack

SCRATCH = ("LFM_SCRATCH", "SLURM_TMPDIR", "_CONDOR_SCRATCH_DIR", "PBS_JOBDIR", "FLUX_JOB_TMPDIR", "LSF_TMPDIR", "LOCAL_SCRATCH", "TMPDIR")
STALE = 60.0  # seconds after which a worker's directory without an owner file is nobody's
STALE_DRAFT = 3600.0  # and an overlay that is being unpacked, which takes seconds


class BadPlace(LfmError):
    """A directory cannot be used: not ours, open to others, or not writable."""


def scratch(environ: Mapping[str, str]) -> tuple[Path, str]:
    """The directory for temporary data on this node, and what named it."""
    for name in SCRATCH:
        value = environ.get(name)
        if value and Path(value).is_absolute() and os.access(value, os.W_OK | os.X_OK):
            return Path(value), f"${name}"
    for path in ("/var/tmp", "/tmp"):
        if os.access(path, os.W_OK | os.X_OK):
            return Path(path), path
    raise BadPlace("no directory for temporary data is writable here; name one with --work-dir or LFM_SCRATCH")


def private_directory(path: Path) -> Path:
    """``path`` as a directory that is ours alone, made if need be."""
    if not path.is_absolute():
        raise BadPlace(f"{path} is not an absolute path")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise BadPlace(f"{path} cannot be used: {error.strerror}; name another place with --work-dir") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BadPlace(f"{path} is not a directory of yours; name another place with --work-dir")
    if found.st_mode & 0o077:
        raise BadPlace(f"{path} is open to others; make it private: chmod 700 {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise BadPlace(f"{path} is not writable; name another place with --work-dir")
    return path


class Cache:
    """What the workers of one user share on one node."""

    def __init__(self, root: Path) -> None:
        self.root = private_directory(root)
        self.blobs, self.workers = root / "blobs", root / "workers"
        self._uses = root / "uses"
        for directory in (self.blobs, self.workers, self._uses, root / "environments", root / "overlays"):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._locks: dict[Item, int] = {}
        self._cpus: int | None = None
        for kind in ("environment", "overlay"):
            sweep_drafts(self.into(kind))

    def neighbours(self) -> list[str]:
        """Other workers of this user that live on this node now."""
        sweep(self.workers)
        return sorted(path.name for path in self.workers.iterdir() if (path / "owner").exists())

    def into(self, kind: Kind) -> Path:
        return self.root / f"{kind}s"

    def path(self, item: Item) -> Path:
        """Where it lies.  ValueError for what is no digest: it came from outside, and paths are removed."""
        if not is_digest(item.digest):
            raise ValueError(f"{item.digest!r} is not a digest")
        return self.into(item.kind) / item.digest

    def use(self, item: Item) -> None:
        """Nobody removes it from now on, until ``drop`` or the end of this process."""
        if item not in self._locks:
            self._locks[item] = lock_file(self._use_file(item), fcntl.LOCK_SH)

    def note_size(self, item: Item, size: int) -> None:
        """Write down how large it is, and that it was used now."""
        with suppress(OSError):  # a full disk: then it counts for nothing until it is used again
            self._use_file(item).write_text(f"{size}\n")

    def size(self, item: Item) -> int:
        """As it was written down; 0 if it was not."""
        try:
            return int(self._use_file(item).read_text() or 0)
        except (OSError, ValueError):
            return 0

    def touch(self, item: Item) -> None:
        with suppress(FileNotFoundError):
            os.utime(self._use_file(item) if item.kind != "blob" else self.path(item))

    def drop(self, item: Item) -> bool:
        """Remove it, unless another worker uses it; whether it is gone."""
        place = self.path(item)
        if item.kind == "blob":
            place.unlink(missing_ok=True)  # who uses it has a link
            return True
        if (own := self._locks.pop(item, None)) is not None:
            os.close(own)
        try:
            lock = lock_file(self._use_file(item), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            if item.kind == "environment":
                unpack.remove(item.digest, self.into(item.kind))
            doomed = self.into(item.kind) / f".dropped-{item.digest}-{os.getpid()}"
            with suppress(FileNotFoundError):
                place.rename(doomed)  # at once: nobody finds half of it
                remove_tree(doomed, within=self.into(item.kind))
            self._use_file(item).unlink(missing_ok=True)
        finally:
            os.close(lock)
        return True

    def claim_cpus(self, cpus: tuple[int, ...]) -> tuple[int, ...]:
        """``cpus`` if no other worker of this node has them; else none, and calls are not pinned."""
        if not cpus:
            return ()
        try:
            self._cpus = lock_file(self.root / "cpus", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ()
        return cpus

    def scan(self, now: float) -> dict[Item, tuple[int, float]]:
        """What is here: bytes, and when it was last used on the clock of ``now``."""
        held: dict[Item, tuple[int, float]] = {}
        shift = now - time.time()
        for entry in os.scandir(self.blobs):
            if is_digest(entry.name):
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    held[Item("blob", Digest(entry.name))] = (found.st_size, found.st_mtime + shift)
        for entry in os.scandir(self._uses):
            kind, _, digest = entry.name.partition("-")
            if kind not in ("environment", "overlay") or not is_digest(digest):
                continue
            item = Item("environment" if kind == "environment" else "overlay", Digest(digest))
            with suppress(FileNotFoundError):
                if self.path(item).exists():
                    held[item] = (self.size(item), entry.stat().st_mtime + shift)
        return held

    def close(self) -> None:
        for lock in (*self._locks.values(), *([self._cpus] if self._cpus is not None else [])):
            os.close(lock)
        self._locks.clear()
        self._cpus = None

    def _use_file(self, item: Item) -> Path:
        return self._uses / f"{item.kind}-{self.path(item).name}"


class Home:
    """One worker's own directory.  It lives as long as the worker."""

    def __init__(self, cache: Cache, name: str) -> None:
        sweep(cache.workers)
        self._workers = cache.workers
        plain = re.sub(r"[^A-Za-z0-9_.]", "-", name).lstrip(".")[:60]  # people choose names; this becomes a path
        self.path = cache.workers / f"{plain}-{os.urandom(4).hex()}"
        self.path.mkdir(mode=0o700)
        draft = self.path / "owner.new"
        draft.write_text(f"{os.getpid()}\n")
        self._lock = lock_file(draft, fcntl.LOCK_EX)
        draft.rename(self.path / "owner")  # whoever sees it finds it locked
        for part in ("blobs", "results", "sandboxes", "functions", "runtime"):
            (self.path / part).mkdir()

    def __truediv__(self, part: str) -> Path:
        return self.path / part

    def is_there(self) -> bool:
        """Whether nobody has removed it.  A file system that does not answer just now has not."""
        try:
            (self.path / "owner").stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

    def remove(self) -> None:
        remove_tree(self.path, within=self._workers)
        os.close(self._lock)


def sweep(workers: Path) -> list[str]:
    """Remove what dead workers left; their names."""
    gone = []
    for path in workers.iterdir():
        owner = path / "owner"
        try:
            lock = lock_file(owner, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False)
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE:
                    remove_tree(path, within=workers)
            continue
        except OSError:
            continue  # it lives
        remove_tree(path, within=workers)
        os.close(lock)
        gone.append(path.name)
    return gone


def sweep_drafts(place: Path) -> None:
    """Remove what was being unpacked or removed in ``place`` when its process was killed."""
    for path in place.iterdir():
        kind, _, rest = path.name.partition("-")
        with suppress(OSError, ValueError):
            if kind == ".unpacking":  # its unpacker would hold the lock of the digest that begins so
                locks = [lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) for lock in place.glob(f".{rest[:12]}*.lock")]
                remove_tree(path, within=place)
                for lock in locks:
                    os.close(lock)
            elif (kind == ".dropped" and not Path(f"/proc/{int(rest.rpartition('-')[2])}").exists()) or (kind == ".new" and time.time() - path.stat().st_mtime > STALE_DRAFT):
                remove_tree(path, within=place)


def remove_tree(path: Path, *, within: Path) -> None:
    """Remove a directory, though a call may have taken its permissions away.

    ``within`` is the directory of ours that it is a direct child of.  ValueError for anything else: a relative
    path, a link, another depth, or where we stand.  Only what is below ``path`` is ever made accessible.
    """
    if not path.is_absolute() or path.parent != within or path.name in ("", ".", "..") or path.is_symlink():
        raise ValueError(f"{path} is not for us to remove")
    with suppress(OSError):
        if Path.cwd().is_relative_to(path.resolve()):
            raise ValueError(f"{path} is where this process stands")
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        with suppress(OSError):
            path.chmod(0o700)
        for top, directories, _ in os.walk(path):
            for name in directories:
                with suppress(OSError):
                    if not (Path(top) / name).is_symlink():
                        (Path(top) / name).chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def lock_file(path: Path, how: int, create: bool = True) -> int:
    """``lfm.locks.lock``; BadPlace where there are none."""
    try:
        return locks.lock(path, how, create)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.filename is not None:  # it could not even be opened
            raise
        raise BadPlace(f"{path} cannot be locked: {error.strerror}; choose a local disk with --work-dir") from None

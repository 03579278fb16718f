"""What this node allows for containing calls: tried out for real, in children that leave nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from lfm.monitor import cgroup, linux, native

_MS_REC, _MS_SLAVE = 0x4000, 1 << 19  # later mounts of the node (autofs, CVMFS) still appear
_PROC_FLAGS = 2 | 4 | 8  # nosuid, nodev, noexec


def probe() -> dict[str, Any]:
    """For ``lfm worker detect``: each tier and what stands against it."""
    namespace = _try(try_namespace)
    undivide = cgroup.divide()
    place, no_group = cgroup.find()
    undivide()
    return {
        "fork": "clone" if native.possible() else "os.fork",
        "pid_namespace": namespace == "",
        "pid_namespace_why": namespace,
        "subreaper": _try(linux.become_subreaper) == "",
        "children_file": os.path.exists(f"/proc/self/task/{os.getpid()}/children"),
        "cgroup": f"v{place.version} in {place.memory}" if place else "",
        "cgroup_why": no_group,
    }


def enter_namespaces() -> None:
    """From now on this process's children live in a PID namespace of their own; ordinary users need a user
    namespace around it, in which they keep their own ids.  OSError where that is not allowed."""
    uid, gid = os.getuid(), os.getgid()
    flags = linux.CLONE_NEWPID | linux.CLONE_NEWNS
    try:
        linux.unshare(flags)
    except PermissionError:
        linux.unshare(flags | linux.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    linux.mount("none", "/", "none", _MS_REC | _MS_SLAVE)


def mount_proc() -> None:
    """Show the namespace's own processes in /proc: for its first process to do."""
    linux.mount("proc", "/proc", "proc", _PROC_FLAGS)


def namespaces_work() -> bool:
    return _try(try_namespace) == ""


def try_namespace() -> None:
    enter_namespaces()
    pid = os.fork()
    if pid == 0:
        try:
            mount_proc()
            os._exit(0 if os.readlink("/proc/self") == str(os.getpid()) else 1)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise PermissionError("/proc cannot be mounted in a namespace here")


def oom_kills() -> int:
    """How often the kernel ended a process for want of memory: in our own cgroup where it tells, else on the node."""
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        told = f"/sys/fs/cgroup/memory{path}/memory.oom_control" if controllers else f"/sys/fs/cgroup{path}/memory.events"
        for name, _, number in (one.partition(" ") for one in _lines(told)):
            if name == "oom_kill":
                return int(number)
    return next((int(line.split()[1]) for line in _lines("/proc/vmstat") if line.startswith("oom_kill ")), 0)


def _lines(path: str) -> list[str]:
    return cgroup.read(path).splitlines()


def _try(what: Callable[[], None]) -> str:
    """Run it in a child; why it failed, empty if it did not."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(5)
            what()
        except BaseException as error:
            os.write(write, (str(error) or type(error).__name__).encode())
        finally:
            os._exit(0)
    os.close(write)
    why = b""
    while part := os.read(read, 4096):
        why += part
    os.close(read)
    if os.waitpid(pid, 0)[1] and not why:
        why = b"it died trying"
    return why.decode("utf-8", "replace")

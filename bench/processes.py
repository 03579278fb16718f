"""CPU time and roles of a whole process tree, read from /proc."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36


def keep_orphans() -> None:
    """From now on a descendant whose parent dies becomes our child: none leaves the tree."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(root: int) -> dict[int, str]:
    """``{pid: role}`` of a process and all below it.  Role: client, manager or worker."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children[int(stat[1])].append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [(root, "client")]
    while waiting:
        pid, role = waiting.pop()
        found[pid] = role = _role(pid, role)
        waiting += [(child, role) for child in children[pid]]
    return found


def _role(pid: int, inherited: str) -> str:
    if inherited != "client":
        return inherited
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return inherited
    for role in ("manager", "worker"):
        if role.encode() in words and b"start" in words:
            return role
    return inherited


def cpu(root: int) -> dict[str, float]:
    """CPU seconds so far of each role, with those of children that have been waited for."""
    total: dict[str, float] = defaultdict(float)
    for pid, role in tree(root).items():
        if stat := _stat(pid):
            total[role] += sum(map(int, stat[11:15])) / TICK
    return dict(total)


def running_ns(root: int) -> dict[str, int]:
    """Nanoseconds that the living threads of each role have run: exact, for processes that last."""
    total: dict[str, int] = defaultdict(int)
    for pid, role in tree(root).items():
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total[role] += int(file.read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return dict(total)


def rss(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

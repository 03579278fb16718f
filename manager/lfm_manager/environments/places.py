"""Where the caches lie on this machine, and how processes take turns in them.

Owns the folder names under ``$LFM_CACHE`` (default ``~/.cache/lfm``); knows nothing of what is in them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm import locks
from lfm.function.cache import cache_root
from lfm.protocol.resources import parse_size
from lfm_manager.environments.problems import BuildFailed

# Parts of a standard library that are left behind.
TRIMMED = frozenset(
    {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "site-packages", "dist-packages"}
)  # fmt: skip


def environments_root() -> Path:
    """Packed environments, by key."""
    return cache_root() / "environments"


def packages_root() -> Path:
    """Conda-shaped packages made of installed distributions and interpreters; a cache that may be emptied."""
    return cache_root() / "packages"


def conda_root() -> Path:
    """What was fetched from conda channels."""
    return cache_root() / "conda"


def private(folder: Path) -> Path:
    """``folder``, made if need be; BuildFailed if others could put something there that we would run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise BuildFailed(
            f"{folder} is not yours alone to write to",
            hint=f"chmod go-w {folder}, or set LFM_CACHE to a folder of your own",
        )
    return folder


def cache_limit() -> int:
    """Bytes that packed environments may take, and packages as much again: ``$LFM_CACHE_LIMIT``, default 20 GB."""
    try:
        return parse_size(os.environ.get("LFM_CACHE_LIMIT", "20GB"))
    except ValueError:
        return 20_000_000_000


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock among processes, in a folder that is made if need be; waits."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locks.locked(path):
        yield


def is_locked(path: Path) -> bool:
    """Whether some process holds ``path`` now."""
    try:
        os.close(locks.lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False

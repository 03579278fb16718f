"""A call's directory: only ever removed if it is the very directory that was handed over empty.

Removing is done below an open descriptor whose device and inode are compared first: a path alone is not
enough to delete anything.  Nothing outside the directory is opened, changed or deleted.
"""

from __future__ import annotations

import itertools
import os
import stat
from typing import NamedTuple

DEEPEST = 32  # directories that are gone down at a time


class Owned(NamedTuple):
    """A directory that is ours to remove, by what it is and not only by where it was."""

    path: str
    device: int
    inode: int


class NotEmpty(ValueError):
    """What was given as a sandbox already holds something: it is somebody's, and stays."""


def own(path: str) -> Owned:
    """Take over an empty directory.  ValueError for anything that could be somebody's."""
    if not os.path.isabs(path):
        raise ValueError(f"a sandbox must be an absolute path: {path!r}")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        with os.scandir(fd) as entries:
            if next(entries, None) is not None:
                raise NotEmpty(f"a sandbox must be empty: {path!r}")
    finally:
        os.close(fd)
    return Owned(path, found.st_dev, found.st_ino)


def make(path: str) -> Owned:
    """A new directory, ours from the start; one that is there already is taken over if it is empty."""
    if not os.path.isabs(path):
        raise ValueError(f"a sandbox must be an absolute path: {path!r}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return own(path)
    found = os.lstat(path)
    return Owned(path, found.st_dev, found.st_ino)


def remove(owned: Owned) -> int:
    """Remove it with all that it holds, whatever its modes; how many bytes that was.  A directory that is no
    longer the same one is left alone."""
    fd = _open_same(owned)
    if fd < 0:
        return 0
    size, again = 0, True
    try:
        while again:
            took, again = _empty(fd, owned.device, fd, 0)
            size += took
    finally:
        os.close(fd)
    try:
        os.rmdir(owned.path)
    except OSError:
        pass
    return size


class Box:
    """The directory of a slot's calls: the same one for call after call, as long as each leaves it untouched.

    Its time of change is set to 0, so that anything that is made in it or taken from it shows, however coarse the
    clock; who sets it back changes another time, which nobody can set.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.owned: Owned | None = None
        self._seal: tuple[int, ...] = ()

    def take(self) -> Owned:
        """An empty directory, its own."""
        if self.owned is None:
            path = os.path.join(self._folder, str(next(_numbers)))
            while os.path.lexists(path):  # of somebody before us
                path = os.path.join(self._folder, str(next(_numbers)))
            self.owned = make(path)
            os.utime(path, ns=(0, 0))
            self._seal = _seal(path)
        return self.owned

    def untouched(self) -> bool:
        """Whether it is just as it was given out."""
        try:
            return self.owned is not None and _seal(self.owned.path) == self._seal
        except OSError:
            return False

    def is_there(self) -> bool:
        return self.owned is not None and os.path.lexists(self.owned.path)

    def forget(self) -> None:
        """It has been removed, or is not to be used again."""
        self.owned = None

    def close(self) -> None:
        if self.owned is not None:
            try:
                os.rmdir(self.owned.path)  # which takes nothing but an empty directory
            except OSError:
                pass
            self.owned = None


_numbers = itertools.count(1)


def _seal(path: str) -> tuple[int, ...]:
    seen = os.lstat(path)
    return (
        seen.st_dev, seen.st_ino, seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_ctime_ns
    )  # fmt: skip


def _open_same(owned: Owned) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        seen = os.lstat(owned.path)
        if (seen.st_dev, seen.st_ino) != (owned.device, owned.inode):
            return -1
        if seen.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(owned.path, stat.S_IRWXU)
        fd = os.open(owned.path, flags)
    except OSError:
        return -1
    seen = os.fstat(fd)
    if (seen.st_dev, seen.st_ino) != (owned.device, owned.inode):
        os.close(fd)
        return -1
    return fd


def _empty(fd: int, device: int, top: int, depth: int) -> tuple[int, bool]:
    """Delete what a directory holds, without following links or crossing into another file system.

    How many bytes that was; and whether something too deep to go down to was moved up to ``top``, so that it is there to
    be deleted as well.
    """
    size, moved = 0, False
    try:
        with os.scandir(fd) as entries:
            found = [entry.name for entry in entries]
    except OSError:
        return 0, False
    for name in found:
        try:
            seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(seen.st_mode):
                os.unlink(name, dir_fd=fd)
                size += seen.st_blocks * 512 if seen.st_nlink == 1 else 0
                continue
            if seen.st_dev != device:
                continue
            below = _open_below(fd, name)
            try:
                if depth == DEEPEST:
                    os.rename(name, _free_name(top), src_dir_fd=fd, dst_dir_fd=top)
                    moved = True
                    continue
                took, more = _empty(below, device, top, depth + 1)
            finally:
                os.close(below)
            size, moved = size + seen.st_blocks * 512 + took, moved or more
            os.rmdir(name, dir_fd=fd)
        except OSError:
            continue
    return size, moved


def _free_name(folder: int) -> str:
    for number in _numbers:
        try:
            os.stat(name := f".{number}", dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            break
    return name


def _open_below(parent: int, name: str) -> int:
    """A directory, with all permissions for us."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except PermissionError:  # a directory without permissions: opened as itself, never through a link
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)
        finally:
            os.close(handle)
        fd = os.open(name, flags, dir_fd=parent)
    try:
        os.fchmod(fd, stat.S_IRWXU)
    except OSError:
        os.close(fd)
        raise
    return fd

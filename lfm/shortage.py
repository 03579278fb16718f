"""What a machine may run short of and have again: errors that are nobody's fault, after which to try again helps.  Pure."""

from __future__ import annotations

import errno
from typing import Literal

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})  # the last: of processes, as fork says it


def shortage(error: BaseException | None) -> Literal["full", "short", ""]:
    """Whether it is a want of room on a disk, of descriptors, memory or processes, or something else."""
    if isinstance(error, MemoryError):
        return "short"
    number = error.errno if isinstance(error, OSError) else None
    return "full" if number in FULL else "short" if number in SHORT else ""


def passes(error: BaseException) -> bool:
    """Whether it is a want of something that others may give back."""
    return bool(shortage(error))


def in_words(error: BaseException) -> str:
    """It in words, for people: a MemoryError has none."""
    return getattr(error, "strerror", None) or "not enough memory"

"""The one exception of this package: an environment that could not be made, and what to do about it."""

from __future__ import annotations

import errno

from lfm.shortage import shortage


class BuildFailed(Exception):
    """``reason`` is one line for a person; ``module`` the import at fault, if one is; ``hint`` the way out."""

    def __init__(self, reason: str, *, module: str = "", hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.module = module
        self.hint = hint


class OutOfSight(BuildFailed):
    """What it is to be made of is not on this machine, or not the same here: its client can make it."""


def from_os_error(error: OSError) -> BuildFailed:
    """Say in words what the operating system said in numbers."""
    place = f" ({error.filename})" if error.filename else ""
    if shortage(error) == "full":
        return BuildFailed(
            f"no space left while building the environment{place}",
            hint="free some space with `lfm env gc`, or set LFM_CACHE to a folder on a larger disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BuildFailed(
            f"{error.strerror}{place}", hint="make the file readable, or leave its package out with exclude="
        )
    return BuildFailed(f"{error.strerror or error}{place}")

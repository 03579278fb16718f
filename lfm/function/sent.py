"""Which files of the user's own went along with an environment: noted beside it, for `lfm env show`.

An environment is shared by many functions, and their own files are in none of its tarballs; so each function's
are written down when it is first sent.  A note that cannot be written or read is no note.
"""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
from pathlib import Path

from lfm.function import cache

MANY = 500  # functions of one environment; the oldest are forgotten first


def own_files(overlay: bytes | None) -> list[str]:
    """The user's own files in an overlay's tar."""
    if not overlay:
        return []
    with tarfile.open(fileobj=io.BytesIO(overlay)) as tar:
        return sorted(m.name.removeprefix("src/") for m in tar if m.isfile() and m.name.startswith("src/"))


def note(key: str, function: str, overlay: bytes | None) -> None:
    """``function`` was sent for the environment ``key`` with this overlay."""
    if (files := own_files(overlay)) and (known := _read(key)).get(function) != files:
        known.pop(function, None)
        known = {**dict(list(known.items())[-MANY + 1 :]), function: files}
        with contextlib.suppress(OSError):
            cache.write(_place(key), known)


def noted(key: str) -> list[str]:
    """All files that are known to have gone along with it."""
    return sorted({file for files in _read(key).values() for file in files})


def forget(key: str) -> None:
    with contextlib.suppress(OSError):
        _place(key).unlink()


def _place(key: str) -> Path:
    return cache.cache_root() / "sent" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', key)}.json"


def _read(key: str) -> dict[str, list[str]]:
    with contextlib.suppress(TypeError):
        return {str(name): [str(file) for file in files] for name, files in cache.read(_place(key)).items()}
    return {}

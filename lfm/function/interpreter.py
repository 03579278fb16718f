"""The Python that runs this, described so that it can be taken along and told apart."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lfm.function.plan import Interpreter

_LEFT_OUT = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter"}
)


@cache
def this() -> Interpreter:
    """The running interpreter; a virtual environment's is the one it was made from."""
    executable = _executable()
    return Interpreter(
        executable=executable,
        version=platform.python_version(),
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        soabi=str(sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag),
        machine=platform.machine(),
        libc=_libc(),
        fingerprint=_fingerprint(executable),
    )


def stamp() -> list[object]:
    """What is surely different when another one is run, or this one was installed anew."""
    found: list[object] = [sys.version, _libc()]
    for path in (_executable(), _library(), sysconfig.get_path("stdlib")):
        with contextlib.suppress(OSError):
            state = os.stat(path)
            found += [str(path), state.st_size, state.st_mtime_ns]
    return found


def _executable() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _library() -> Path:
    return Path(sys.base_prefix, "lib", str(sysconfig.get_config_var("INSTSONAME") or "."))


def _libc() -> str:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").strip()
    except (AttributeError, ValueError, OSError):
        return " ".join(platform.libc_ver()).strip()


def _fingerprint(executable: str) -> str:
    """sha-256 over the binary, its library and the names and sizes of the standard library and the headers, not their
    places."""
    total = hashlib.sha256(
        f"{sys.version}\0{sysconfig.get_config_var('SOABI')}\0{platform.machine()}".encode()
    )
    for file in (Path(executable), _library()):
        if file.is_file():
            with file.open("rb") as handle:
                total.update(hashlib.file_digest(handle, "sha256").digest())
    folders = {sysconfig.get_path(which) for which in ("stdlib", "platstdlib", "include")}
    for folder in sorted(folder for folder in folders if os.path.isdir(folder)):
        for line in sorted(_names_and_sizes(folder)):
            total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _names_and_sizes(root: str, below: str = "") -> Iterator[str]:
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            name = os.path.join(below, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _LEFT_OUT:
                    yield from _names_and_sizes(root, name)
            elif not entry.name.endswith(".pyc") and entry.is_file():
                yield f"{name}\0{entry.stat().st_size}\n"

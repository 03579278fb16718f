# ruff: noqa: PTH118, PTH120
# Thousands of files: plain strings cost a tenth of Path objects.
"""One installed distribution as a package: its files as they lie on the client's disk now, plus bytecode.

What belongs to it is read from RECORD; where there is none (Debian's own packages) from ``installed-files.txt``
or the names in ``top_level.txt``.  Nothing of it is imported.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lfm.function.plan import Distribution
from lfm_manager.environments import bytecode, elf
from lfm_manager.environments.interpreter import Described
from lfm_manager.environments.packages import Draft, Package, Packages
from lfm_manager.environments.places import locked
from lfm_manager.environments.problems import BuildFailed

# What installers note about the installing: it differs from place to place and is no part of the distribution.
_NOTES = frozenset({"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"})
_PYTHON_SHEBANG = re.compile(rb"\A#![^\n]*?/(python[0-9.]*)[ \t]*(-[^\n]*)?\n")
_LONG_SHEBANG = re.compile(rb"\A#!/bin/sh\n'''exec' [^\n]*?python[0-9.]*\"? \"\$0\" \"\$@\"\n' '''\n")


def package(packages: Packages, distribution: Distribution, prefix: str, python: Described) -> Package:
    """The distribution's package for this Python, made on first use and kept."""
    build = f"py{python.minor.replace('.', '')}_{distribution.fingerprint[:16]}"
    name, version = distribution.name, _file_name(distribution.version)
    if found := packages.find(name, version, build):
        return found
    with locked(packages.lock_path(f"{name}-{version}-{build}")):
        if found := packages.find(name, version, build):
            return found
        with packages.make(name, version, build) as draft:
            _fill(draft, distribution, prefix, python)
            return draft.finish()


def _fill(draft: Draft, distribution: Distribution, prefix: str, python: Described) -> None:
    files = _files(distribution, prefix, python)
    copied = [(source, target) for source, target in files if _copy(draft, source, target, distribution)]
    if not copied:
        raise BuildFailed(
            f"{distribution.name} {distribution.version} has no files in {distribution.location}",
            hint=f"install it again: pip install --force-reinstall {distribution.name}=={distribution.version}",
        )
    _bring_libraries(draft, distribution, copied)
    inside = python.site_packages + "/"
    bytecode.compile_all(
        Path(python.executable),
        [
            bytecode.planned(draft, source, target, python.cache_tag)
            for source, target in copied
            if target.endswith(".py") and target.startswith(inside)
        ],
    )


def _copy(draft: Draft, source: Path, target: str, distribution: Distribution) -> bool:
    """False if it is not there: taken out by hand, or a link that leads nowhere; the client runs without it too."""
    try:
        if target.startswith("bin/"):
            content = portable_script(source.read_bytes())
            draft.write(target, content, executable=os.access(source, os.X_OK))
        elif target.endswith(".dist-info/RECORD"):
            draft.write(target, _portable_record(source.read_text(encoding="utf-8")).encode())
        else:
            draft.copy(source, target)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except PermissionError as error:
        raise BuildFailed(
            f"cannot read {source} (of {distribution.name} {distribution.version}): {error.strerror}",
            hint=f"make it readable, or leave it out with exclude=[{distribution.name!r}]",
        ) from error
    return True


def _bring_libraries(draft: Draft, distribution: Distribution, copied: list[tuple[Path, str]]) -> None:
    """What was compiled on this machine needs this machine's libraries; a portable wheel brings its own."""
    if _is_portable(Path(distribution.metadata)):
        return
    binaries = {source: target for source, target in copied if ".so" in source.name and elf.is_elf(source)}
    found = elf.needed(list(binaries)).found
    own = {os.path.realpath(source) for source, _ in copied}
    foreign = {
        name: path
        for name, path in found.items()
        if os.path.realpath(path) not in own and not name.startswith("libpython")
    }
    if not foreign:
        return
    libraries = [draft.copy(path, f"lib/{name}") for name, path in sorted(foreign.items())]
    elf.set_run_path(libraries, "$ORIGIN")
    for target in binaries.values():
        up = os.path.relpath("lib", os.path.dirname(target))
        elf.add_run_path(draft.path / target, f"$ORIGIN/{up}")


def _is_portable(metadata: Path) -> bool:
    """Whether its WHEEL promises that it runs elsewhere: pure Python, or built for manylinux."""
    try:
        text = (metadata / "WHEEL").read_text(encoding="utf-8")
    except OSError:
        return False
    tags = re.findall(r"^Tag:\s*\S+-(\S+?)\s*$", text, re.MULTILINE)
    return bool(tags) and all(tag == "any" or "manylinux" in tag for tag in tags)


def _files(distribution: Distribution, prefix: str, python: Described) -> Iterator[tuple[Path, str]]:
    """(file, its place in a prefix), each once."""
    location, metadata = os.path.normpath(distribution.location), os.path.normpath(distribution.metadata)
    seen: set[str] = set()
    for path in _listed(distribution, location):
        folder, name = os.path.split(path)
        if name.endswith((".pyc", ".pyo")) or (name in _NOTES and folder == metadata):
            continue
        target = _place(path, location, prefix, python)
        if target and target not in seen:
            seen.add(target)
            yield Path(path), target


def _place(path: str, location: str, prefix: str, python: Described) -> str | None:
    """Where a file of the client's goes; None if it lies outside of both site-packages and prefix."""
    if path.startswith(location + os.sep):
        return f"{python.site_packages}/{path[len(location) + 1 :]}"
    root = os.path.normpath(prefix)
    if path.startswith(root.rstrip(os.sep) + os.sep):
        inside = path[len(root.rstrip(os.sep)) + 1 :]
        return inside if root != "/usr" else inside.removeprefix("local/")
    return None


def _listed(distribution: Distribution, location: str) -> Iterator[str]:
    metadata = Path(distribution.metadata)
    if (record := metadata / "RECORD").is_file():
        with open(record, newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                if row:
                    yield os.path.normpath(os.path.join(location, row[0]))
    elif (record := metadata / "installed-files.txt").is_file():
        for line in record.read_text(encoding="utf-8").splitlines():
            yield os.path.normpath(os.path.join(metadata, line))
        yield os.path.normpath(record)
    else:
        yield from _guessed(metadata, location, distribution.name)


def _guessed(metadata: Path, location: str, name: str) -> Iterator[str]:
    """All under the names that its metadata, or else its own name, says are its top level."""
    yield from _walk(metadata)
    top_level = metadata / "top_level.txt"
    names = top_level.read_text().split() if top_level.is_file() else [name.replace("-", "_"), name]
    for top in names:
        base = Path(location, top)
        if base.is_dir():
            yield from _walk(base)
        for path in sorted(base.parent.glob(f"{base.name}.*")):
            if path.suffix in (".py", ".so"):
                yield str(path)


def _walk(root: Path) -> Iterator[str]:
    if root.is_file():
        yield str(root)
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            yield os.path.join(folder, name)


def portable_script(content: bytes) -> bytes:
    """A console script whose Python is the one on PATH: the environment's own, in a call."""
    if match := _LONG_SHEBANG.match(content):
        return b"#!/usr/bin/env python\n" + content[match.end() :]
    if match := _PYTHON_SHEBANG.match(content):
        return b"#!/usr/bin/env python\n" + content[match.end() :]
    return content


def _portable_record(text: str) -> str:
    """RECORD without what differs from place to place: bytecode, notes, and the hashes of generated scripts."""
    rows = []
    for row in csv.reader(io.StringIO(text)):
        if not row or row[0].endswith((".pyc", ".pyo")):
            continue
        folder, name = os.path.split(row[0])
        if not (name in _NOTES and folder.endswith(".dist-info")):
            rows.append([row[0], "", ""] if row[0].startswith("..") else row)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(sorted(rows))
    return out.getvalue()


def _file_name(version: str) -> str:
    """A version as part of a file name; conda allows no dash in it."""
    return re.sub(r"[^A-Za-z0-9._+!]", "_", version)

# ruff: noqa: PTH114, PTH115, PTH118, PTH202
# Thousands of files: plain strings cost a tenth of Path objects.
"""The cache of conda-shaped packages: one folder each, its files as they lie in a prefix, ``info/`` beside them.

A package is made once and then only read: by packing, which takes files straight from here, and by a channel
that ``conda-package-handling`` makes of it.  Several processes may make the same one; the first rename wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

from lfm_manager.environments import elf
from lfm_manager.environments.places import locked, private

PACKER = "1"  # raise it when the same input gives other files: old packages are then left alone


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a package, as ``info/paths.json`` has it."""

    path: str  # relative to the prefix
    sha256: str
    size: int
    link: bool = False
    placeholder: str = ""  # the prefix that its text speaks of, to be replaced where it is unpacked


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str
    build: str
    path: Path
    entries: tuple[Entry, ...]
    glibc: int = 0  # its binaries need glibc 2.N or later

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries)

    def record(self) -> dict[str, object]:
        """What ``conda-meta/NAME-VERSION-BUILD.json`` says of it."""
        return {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "channel": "lfm",
            "subdir": "",
            "depends": [],
            "url": "",
            "fn": f"{self.name}-{self.version}-{self.build}",
            "files": [entry.path for entry in self.entries],
            "link": {"source": "", "type": 1},
        }


class Packages:
    """The cache: ``find`` or ``make``."""

    def __init__(self, root: Path) -> None:
        self._root = root / f"v{PACKER}"

    def find(self, name: str, version: str, build: str) -> Package | None:
        """A package that is there and whole; marks it as used."""
        path = self._root / f"{name}-{version}-{build}"
        try:
            raw = json.loads((path / "info" / "lfm.json").read_bytes())
            os.utime(path)
            entries = tuple(Entry(**entry) for entry in raw["entries"])
            return Package(name, version, build, path, entries, raw["glibc"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make(self, name: str, version: str, build: str) -> Draft:
        return Draft(self, self._root, name, version, build)

    def lock_path(self, name: str) -> Path:
        return self._root / f".{name}.lock"

    def gc(self, keep_bytes: int) -> tuple[int, int]:
        """Remove the least recently used until ``keep_bytes`` are left; (packages, bytes) removed.

        Nothing that was used in the last hour goes: a build may be reading it.
        """
        if not self._root.is_dir():
            return 0, 0
        held = []
        for path in self._root.iterdir():
            if path.name.startswith("."):
                if path.is_dir() and time.time() - path.stat().st_mtime > 86_400:
                    shutil.rmtree(path, ignore_errors=True)  # a draft whose builder died
                continue
            try:
                size = sum(
                    e["size"] for e in json.loads((path / "info" / "lfm.json").read_bytes())["entries"]
                )
                held.append((path.stat().st_mtime, size, path))
            except (OSError, ValueError, KeyError):
                shutil.rmtree(path, ignore_errors=True)
        total, removed, freed = sum(size for _, size, _ in held), 0, 0
        for used, size, path in sorted(held):
            if total - freed <= keep_bytes or time.time() - used < 3600:
                break
            shutil.rmtree(path, ignore_errors=True)
            self.lock_path(path.name).unlink(missing_ok=True)
            removed, freed = removed + 1, freed + size
        return removed, freed


class Draft:
    """A package being made.  A context manager: what was not finished is removed."""

    def __init__(self, cache: Packages, root: Path, name: str, version: str, build: str) -> None:
        self._cache, self._root = cache, root
        self.name, self.version, self.build = name, version, build
        self.path = root / f".draft-{name}-{version}-{os.getpid()}-{time.monotonic_ns():x}"
        self._made: set[Path] = set()
        self._placeholders: dict[str, str] = {}
        self._glibc = 0

    def __enter__(self) -> Draft:
        private(self._root)
        self.path.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def at(self, target: str) -> Path:
        """Where ``target`` (relative to the prefix) lies in the draft; its folder exists."""
        if PurePosixPath(target).is_absolute() or ".." in PurePosixPath(target).parts:
            raise ValueError(f"{target} lies outside its package")
        path = self.path / target
        if path.parent not in self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        return path

    def copy(self, source: Path, target: str) -> Path:
        """Copy the content of ``source`` (following links) and whether it may be executed."""
        path = self.at(target)
        shutil.copyfile(source, path)
        path.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)
        return path

    def write(self, target: str, content: bytes, executable: bool = False) -> Path:
        path = self.at(target)
        path.write_bytes(content)
        path.chmod(0o755 if executable else 0o644)
        return path

    def link(self, target: str, to: str) -> None:
        """A relative symbolic link."""
        self.at(target).symlink_to(to)

    def placeholder(self, target: str, prefix: str) -> None:
        """``target`` is a text that names ``prefix``: to be replaced where the environment is unpacked."""
        self._placeholders[target] = prefix

    def finish(self) -> Package:
        """Hash, describe and publish it."""
        entries = tuple(sorted(self._entries(), key=lambda entry: entry.path))
        info = self.path / "info"
        info.mkdir()
        (info / "paths.json").write_text(
            json.dumps({"paths": [_conda(e) for e in entries], "paths_version": 1})
        )
        (info / "index.json").write_text(
            json.dumps(
                {
                    "name": self.name,
                    "version": self.version,
                    "build": self.build,
                    "build_number": 0,
                    "depends": [],
                }
            )
        )
        (info / "lfm.json").write_text(
            json.dumps({"entries": [asdict(entry) for entry in entries], "glibc": self._glibc})
        )
        final = self._root / f"{self.name}-{self.version}-{self.build}"
        with locked(self._cache.lock_path("publish")):
            made = self._cache.find(self.name, self.version, self.build)
            if made is None:
                shutil.rmtree(final, ignore_errors=True)  # half removed
                self.path.rename(final)
        return made or Package(self.name, self.version, self.build, final, entries, self._glibc)

    def _entries(self) -> Iterable[Entry]:
        for folder, folders, files in os.walk(self.path):
            inside = os.path.relpath(folder, self.path)
            for name in files + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                path = os.path.join(folder, name)
                target = os.path.normpath(os.path.join(inside, name))
                if os.path.islink(path):
                    link = os.readlink(path)
                    yield Entry(target, hashlib.sha256(link.encode()).hexdigest(), 0, link=True)
                    continue
                with open(path, "rb") as file:
                    if file.read(4) == elf.MAGIC:
                        self._glibc = max(self._glibc, elf.glibc_needed(path))
                    file.seek(0)
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield Entry(
                    target, digest, os.path.getsize(path), placeholder=self._placeholders.get(target, "")
                )


def _conda(entry: Entry) -> dict[str, object]:
    """An entry as conda writes it."""
    path: dict[str, object] = {
        "_path": entry.path,
        "path_type": "softlink" if entry.link else "hardlink",
        "sha256": entry.sha256,
        "size_in_bytes": entry.size,
    }
    if entry.placeholder:
        path |= {"prefix_placeholder": entry.placeholder, "file_mode": "text"}
    return path

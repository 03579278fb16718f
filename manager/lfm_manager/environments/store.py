"""The packed environments of this user: one tarball and one description per key, made once.

A key is the client's name for what it needs, a digest the tarball's own.  Whoever builds holds the key's lock;
whoever comes second finds it built.  Reading needs no lock: both files appear by rename, the description last.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfm.function import sent
from lfm.locks import lock
from lfm_manager.environments.places import environments_root, is_locked, locked, private

SUFFIX = ".tar.zst"


@dataclass(frozen=True, slots=True)
class Built:
    """A packed environment; ``path`` is its tarball."""

    key: str
    digest: str
    path: Path
    bytes: int
    python: str
    machine: str
    libc: str  # "glibc 2.36": a node needs this or a later one
    distributions: tuple[dict[str, str], ...]  # name, version, why
    kind: str
    built: float  # seconds since 1970
    built_s: float
    unpacked_bytes: int
    files: int
    whole: dict[str, int]  # what packing everything would have taken: {"distributions", "bytes"}
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Built:
        raw = dict(raw)
        return cls(
            path=Path(raw.pop("path")),
            distributions=tuple(raw.pop("distributions")),
            warnings=tuple(raw.pop("warnings")),
            **raw,
        )


class Store:
    def __init__(self, root: Path | None = None) -> None:
        self.root = root or environments_root()

    def find(self, key: str) -> Built | None:
        """The environment of this key if it is there; marks it as used."""
        built = self._read(self._description(key))
        if built is not None:
            try:
                os.utime(self._description(key))
            except OSError:
                pass
        return built

    def all(self) -> list[Built]:
        """All, the last used first."""
        if not self.root.is_dir():
            return []
        found = []
        for path in self.root.glob("*.json"):
            if built := self._read(path):
                found.append((path.stat().st_mtime, built))
        return [built for _, built in sorted(found, key=lambda pair: -pair[0])]

    def resolve(self, start: str) -> list[Built]:
        """Those whose key or digest starts so."""
        return [b for b in self.all() if b.key.startswith(start) or b.digest.startswith(start)]

    @contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Hold the right to build this key; waits for whoever has it."""
        private(self.root)
        with locked(self._lock(key)):
            yield

    def workplace(self, key: str) -> Path:
        """An empty folder to build in, for the holder of ``building(key)``, who removes it afterwards."""
        place = self.root / f".{_safe(key)}.building"
        shutil.rmtree(place, ignore_errors=True)  # of a builder that was killed
        place.mkdir()
        return place

    def publish(self, tarball: Path, built: Built) -> Built:
        """Give ``tarball`` its name and make the environment known."""
        final = self.root / f"{_safe(built.key)}{SUFFIX}"
        tarball.rename(final)
        raw = built.to_dict() | {"path": str(final)}
        aside = self.root / f".{_safe(built.key)}-{os.getpid()}.json"
        aside.write_text(json.dumps(raw, indent=1))
        aside.rename(self._description(built.key))
        return Built.from_dict(raw)

    def remove(self, built: Built) -> None:
        """Description first: what is half removed is not found."""
        self._description(built.key).unlink(missing_ok=True)
        built.path.unlink(missing_ok=True)
        self._lock(built.key).unlink(missing_ok=True)
        self._use(built.key).unlink(missing_ok=True)
        sent.forget(built.key)

    def hold(self, key: str) -> Hold:
        """Keep this environment from being removed until the hold is closed or its process ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        return Hold(self._use(key))

    def gc(self, keep_bytes: int = 0, older_than_s: float = 0.0) -> list[Built]:
        """Remove the least recently used until ``keep_bytes`` are left; never one held, being built, or too young."""
        if not self.root.is_dir():
            return []
        self._sweep()
        held = self.all()
        total, removed = sum(b.bytes for b in held), []
        for built in reversed(held):
            try:
                age = time.time() - self._description(built.key).stat().st_mtime
            except FileNotFoundError:
                continue
            if total <= keep_bytes or age < older_than_s:
                break
            if not is_locked(self._lock(built.key)) and not is_locked(self._use(built.key)):
                self.remove(built)
                removed.append(built)
                total -= built.bytes
        return removed

    def _sweep(self) -> None:
        """Remove what a builder that died has left."""
        for path in self.root.glob(".*"):
            if path.suffix in (".lock", ".use"):
                continue
            if time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        for path in self.root.glob(f"*{SUFFIX}"):
            key = path.name.removesuffix(SUFFIX)
            if not (self.root / f"{key}.json").exists() and not is_locked(self.root / f".{key}.lock"):
                path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Built | None:
        try:
            built = Built.from_dict(json.loads(path.read_bytes()))
            return built if built.path.stat().st_size == built.bytes else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _description(self, key: str) -> Path:
        return self.root / f"{_safe(key)}.json"

    def _use(self, key: str) -> Path:
        return self.root / f".{_safe(key)}.use"

    def _lock(self, key: str) -> Path:
        return self.root / f".{_safe(key)}.lock"


class Hold:
    """A shared lock on an environment that is in use."""

    def __init__(self, path: Path) -> None:
        self._descriptor = lock(path, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _safe(key: str) -> str:
    """A key as a file name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)

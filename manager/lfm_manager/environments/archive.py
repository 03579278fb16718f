# ruff: noqa: PTH112, PTH114, PTH115
# Thousands of files: plain strings cost a tenth of Path objects.
"""Packing: conda-pack over a set of packages, into a tar.zst whose bytes depend on nothing but the files.

conda-pack decides what goes in and how prefixes are mended at the other end (``bin/conda-unpack``); its own
writer is replaced, because it keeps times and owners and compresses slowly.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import zstandard
from conda_pack.core import CondaEnv, File, Packer

from lfm_manager.environments.packages import Package
from lfm_manager.environments.progress import Report

LEVEL = 1
MTIME = 946_684_800  # 2000-01-01: any fixed time after 1980, which zip files made of these need
META = "conda-meta"


@dataclass(frozen=True, slots=True)
class Packed:
    digest: str
    bytes: int
    unpacked_bytes: int
    files: int


def from_packages(prefix: Path, packages: Sequence[Package]) -> CondaEnv:
    """A conda environment made of these: only its ``conda-meta`` is written; the files stay in their cache."""
    history = prefix / META / "history"
    files = files_of(packages, prefix)
    history.write_text("")
    return CondaEnv(str(prefix), [*files, File(str(history), f"{META}/history")])


def files_of(packages: Sequence[Package], prefix: Path) -> list[File]:
    """What conda-pack is to pack of these, records in ``conda-meta`` included.

    Where two packages have the same file the first wins: the client's installer had the last word there, but
    such files are the same in practice (the ``__init__`` of old namespace packages, a licence).
    """
    (prefix / META).mkdir(parents=True, exist_ok=True)
    files: dict[str, File] = {}
    for package in packages:
        for entry in package.entries:
            if entry.path not in files:
                files[entry.path] = File(
                    str(package.path / entry.path),
                    entry.path,
                    file_mode="text" if entry.placeholder else None,
                    prefix_placeholder=entry.placeholder or None,
                )
        name = f"{META}/{package.name}-{package.version}-{package.build}.json"
        (prefix / name).write_text(json.dumps(package.record()))
        files[name] = File(str(prefix / name), name)
    return list(files.values())


def pack(environment: CondaEnv, output: Path, report: Report) -> Packed:
    """Write the tarball; the caller renames it into place."""
    with open(output, "wb") as raw:
        hashed = _Hashed(raw)
        compressor = zstandard.ZstdCompressor(
            level=LEVEL, threads=max(1, min(4, len(os.sched_getaffinity(0))))
        )
        with compressor.stream_writer(cast(IO[bytes], hashed), closefd=False) as stream:
            archive = DeterministicTar(stream)
            packer = Packer(environment.prefix, archive)
            total = len(environment.files)
            for done, file in enumerate(environment.files):
                packer.add(file)
                report("pack", done + 1, total, "")
            packer.finish()
            archive.close()
        raw.flush()
        os.fsync(raw.fileno())
    return Packed(hashed.hexdigest(), hashed.written, archive.unpacked_bytes, archive.files)


class DeterministicTar:
    """What conda-pack writes into: a tar without times, owners, or modes beyond "may be executed"."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.TarFile(
            fileobj=cast(IO[bytes], _Counted(stream)), mode="w", format=tarfile.PAX_FORMAT
        )
        self.files = 0
        self.unpacked_bytes = 0

    def add(self, source: str, target: str) -> None:
        if os.path.islink(source):
            info = self._info(target, executable=True)
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(source)
            self._tar.addfile(info)
            return
        if os.path.isdir(source):
            info = self._info(target, executable=True)
            info.type = tarfile.DIRTYPE
            self._tar.addfile(info)
            return
        with open(source, "rb") as file:
            stat = os.fstat(file.fileno())
            info = self._info(target, executable=bool(stat.st_mode & 0o111))
            info.size = stat.st_size
            self._tar.addfile(info, file)
        self.unpacked_bytes += info.size

    def add_bytes(self, source: str, sourcebytes: bytes, target: str) -> None:
        info = self._info(target, executable=os.access(source, os.X_OK) and target.startswith("bin/"))
        info.size = len(sourcebytes)
        self._tar.addfile(info, io.BytesIO(sourcebytes))
        self.unpacked_bytes += info.size

    def close(self) -> None:
        self._tar.close()

    def _info(self, target: str, executable: bool) -> tarfile.TarInfo:
        self.files += 1
        info = tarfile.TarInfo(target)
        info.mode = 0o755 if executable else 0o644
        info.mtime = MTIME
        return info


class _Counted:
    """A stream that only knows where it is: all that tarfile asks of what it writes to."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._at = stream, 0

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at


class _Hashed:
    """Writes on, and knows the digest of what went through."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._hash, self.written = raw, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.written += len(data)
        return self._raw.write(data)

    def flush(self) -> None:
        self._raw.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

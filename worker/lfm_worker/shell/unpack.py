# ruff: noqa: PTH102, PTH117, PTH211
# Thousands of files: plain strings cost a tenth of Path objects.
"""One environment, unpacked once per node: checked, extracted aside, renamed, mended, marked as ready.

``<into>/<digest>/`` is its prefix; it is whole if, and only if, ``<into>/<digest>.ready`` is there.  Workers on
one node may share ``into``: the first unpacks, the others wait for its lock.  Trust ends at the digest: it came
from the manager, and whoever made the tarball may run code here anyway; what is refused below is accident and
corruption.  ``python -m lfm_worker.shell.unpack TARBALL DIGEST INTO`` does it in a process of its own.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from lfm.locks import locked
from lfm.shortage import shortage
from lfm_worker.shell.tarstream import BadTar, Member, TarStream

Report = Callable[[int, int], None]
MOST_FILES = 2_000_000
MOST_BYTES = 200 * 2**30
MEND_SECONDS = 300.0


class UnpackFailed(Exception):
    """``code``, also the exit code, says what to do about it."""

    FAILED = 1
    CORRUPT = 3  # fetch it again
    FULL = 4  # this node has no space for it
    UNUSABLE = 5  # it cannot run here

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


def _nobody(done: int, total: int) -> None:
    """Hears how far it is."""


def unpack(
    tarball: Path, digest: str, into: Path, *, most_bytes: int = MOST_BYTES, report: Report = _nobody
) -> Path:
    """The prefix ``into/digest``, ready to run.  UnpackFailed says what is wrong in one line.

    ``report`` hears, file by file, how many bytes of how many of the tarball are done.
    """
    _check_name(digest)
    prefix, ready = into / digest, into / f"{digest}.ready"
    try:
        into.mkdir(parents=True, exist_ok=True)
        with locked(into / f".{digest}.lock"):
            if ready.exists() and prefix.is_dir():
                os.utime(ready)  # the mark's time is when it was last wanted
                return prefix
            _remove(ready)
            _remove(prefix)
            _check_digest(tarball, digest)
            size = _extract_aside(tarball, prefix, most_bytes, report)
            try:
                _mend(prefix)
            except BaseException:
                _remove(prefix)
                raise
            _mark(ready, size)
            return prefix
    except OSError as error:
        if shortage(error) == "full":
            raise UnpackFailed(
                f"no space left to unpack the environment in {into}", UnpackFailed.FULL
            ) from error
        reason = f"cannot unpack in {into}: {error.strerror or error}"
        raise UnpackFailed(reason, UnpackFailed.FAILED) from error


def is_ready(digest: str, into: Path) -> bool:
    return (into / f"{digest}.ready").exists() and (into / digest).is_dir()


def remove(digest: str, into: Path) -> None:
    """Forget an unpacked environment; the caller knows that nothing runs in it."""
    _check_name(digest)
    with locked(into / f".{digest}.lock"):
        _remove(into / f"{digest}.ready")
        _remove(into / digest)
        _remove(into / f".{digest}.lock")


def _check_name(digest: str) -> None:
    """Folders are made and removed by this name: nothing but a digest will do."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UnpackFailed(f"{digest!r} is not a sha-256 digest", UnpackFailed.FAILED)


def _check_digest(tarball: Path, digest: str) -> None:
    with open(tarball, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise UnpackFailed(
            f"{tarball.name} is not what was sent: its sha-256 is {found[:12]}..., not {digest[:12]}...",
            UnpackFailed.CORRUPT,
        )


def _extract_aside(tarball: Path, prefix: Path, most_bytes: int, report: Report) -> int:
    """Extract beside ``prefix`` and rename: what has its name is all there.  The bytes it takes."""
    aside = prefix.parent / f".unpacking-{prefix.name}"  # which the worker knows to sweep
    _remove(aside)  # of one that was killed: nobody else writes here while we hold the lock
    aside.mkdir(mode=0o700)
    try:
        size = extract(tarball, aside, most_bytes, report)
        aside.rename(prefix)
    except (BadTar, zstandard.ZstdError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise UnpackFailed(f"{tarball.name} cannot be unpacked: {error}", UnpackFailed.CORRUPT) from error
    finally:
        _remove(aside)
    return size


def extract(tarball: Path, into: Path, most_bytes: int, report: Report = _nobody) -> int:
    """Extract into an empty folder of our own, within limits; bytes written."""
    writer, total = _Writer(into, most_bytes), tarball.stat().st_size
    with open(tarball, "rb") as raw, _opened(raw) as tar:
        for member in tar:
            writer.add(member, tar)
            report(raw.tell(), total)
    writer.check_links()
    if writer.count == 0:
        raise UnpackFailed(f"{tarball.name} is empty", UnpackFailed.CORRUPT)
    return writer.size


class _Writer:
    """Writes members below a folder that was empty, so that what lies there is known without asking the disk.

    As strict as tarfile's ``data`` filter, which older Pythons lack and which asks the disk about every member:
    nothing is written through a link or over another member, no link leads out, nothing but files, folders
    and links is made, and of the mode only "may be executed" is kept.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self._root, self._most_bytes = os.fspath(root), most_bytes
        self._folders: set[str] = {""}
        self._files: set[str] = set()
        self._links: list[str] = []
        self.count = self.size = 0

    def add(self, member: Member, tar: TarStream) -> None:
        self.count += 1
        self.size += member.size
        if self.count > MOST_FILES or self.size > self._most_bytes:
            raise _unsafe(f"it holds more than {self._most_bytes} bytes or {MOST_FILES} files")
        name = _inside(member.name, member.name)
        if member.kind == "folder":
            self._folder(name)
            return
        folder, _, _ = name.rpartition("/")
        self._folder(folder)
        path = f"{self._root}/{name}"
        try:
            match member.kind:
                case "file":
                    _write(path, member, tar)
                    self._files.add(name)
                case "symlink":
                    _inside(
                        f"{folder}/{member.link}" if folder and member.link[:1] != "/" else member.link,
                        member.name,
                    )
                    os.symlink(member.link, path)
                    self._links.append(path)
                case "hardlink" if (other := _inside(member.link, member.name)) in self._files:
                    os.link(f"{self._root}/{other}", path, follow_symlinks=False)
                case _:
                    raise _unsafe(f"{member.name} is neither a file, a folder nor a link")
        except FileExistsError:
            raise _unsafe(f"{member.name} is in it twice") from None

    def check_links(self) -> None:
        """A link may lead through others: where all end up is known now that all are there."""
        root = os.path.realpath(self._root)
        for link in self._links:
            try:
                end = os.path.realpath(link, strict=True)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise _unsafe(f"{os.path.relpath(link, self._root)} leads in a circle") from None
                end = os.path.realpath(link)  # to nothing, which harms nobody
            if os.path.commonpath([end, root]) != root:
                raise _unsafe(f"{os.path.relpath(link, self._root)} leads out of it")

    def _folder(self, name: str) -> None:
        if name not in self._folders:
            self._folder(name.rpartition("/")[0])
            try:
                os.mkdir(f"{self._root}/{name}", 0o755)
            except FileExistsError:  # ours are all in the set: this is a file or a link
                raise _unsafe(f"{name} is in it twice") from None
            self._folders.add(name)


def _write(path: str, member: Member, tar: TarStream) -> None:
    mode = 0o755 if member.executable else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        tar.copy(descriptor)
    finally:
        os.close(descriptor)


def _inside(name: str, member: str) -> str:
    """``name`` without dots; refused if it leads out of the folder it is relative to."""
    plain = os.path.normpath(name)
    if not name or os.path.isabs(name) or plain == ".." or plain.startswith("../") or "\0" in name:
        raise _unsafe(f"{member} leads out of it")
    return "" if plain == "." else plain


def _unsafe(text: str) -> UnpackFailed:
    return UnpackFailed(f"the environment's tarball is refused: {text}", UnpackFailed.UNUSABLE)


@contextmanager
def _opened(raw: BinaryIO) -> Iterator[TarStream]:
    """Ours are zstd; a user's own may be compressed in other ways."""
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        stream: Any = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
    elif magic.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=raw)
    elif magic.startswith(b"BZh"):
        stream = bz2.BZ2File(raw)
    elif magic.startswith(b"\xfd7zXZ\0"):
        stream = lzma.LZMAFile(raw)  # noqa: SIM115 - closed below, as all of them are
    else:
        stream = raw
    with stream:
        yield TarStream(stream)


def _mend(prefix: Path) -> None:
    """Write the prefix's place into the files that name one, with its own Python: proof that it runs here."""
    python, script = prefix / "bin" / "python", prefix / "bin" / "conda-unpack"
    if not python.exists():
        raise UnpackFailed("the environment has no bin/python", UnpackFailed.UNUSABLE)
    command = [str(python), "-B", str(script)] if script.exists() else [str(python), "-I", "-B", "-c", "pass"]
    try:
        done = subprocess.run(
            command, env={"PATH": os.defpath}, cwd=prefix, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=MEND_SECONDS, check=False,
        )  # fmt: skip
    except OSError as error:  # another architecture, or no loader for it
        reason = f"the environment's Python cannot run on this node: {error.strerror}"
        raise UnpackFailed(reason, UnpackFailed.UNUSABLE) from error
    except subprocess.TimeoutExpired as error:
        raise UnpackFailed("the environment's conda-unpack does not end", UnpackFailed.UNUSABLE) from error
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        reason = f"the environment's Python does not work on this node: {last}"
        raise UnpackFailed(reason, UnpackFailed.UNUSABLE)


def _mark(ready: Path, size: int) -> None:
    aside = ready.with_name(f".{ready.name}-{secrets.token_hex(4)}")
    aside.write_text(json.dumps({"bytes": size, "unpacked": time.time()}))
    aside.rename(ready)


def _remove(path: Path) -> None:
    """Remove what this module made: a folder or a file under ``into``, never what a link leads to."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(path, ignore_errors=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m lfm_worker.shell.unpack TARBALL DIGEST INTO", file=sys.stderr)
        return 2
    tarball, digest, into = arguments
    try:
        print(unpack(Path(tarball), digest, Path(into).absolute()))
    except UnpackFailed as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

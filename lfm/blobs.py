"""Blobs: bytes named by their sha-256, as files in a directory; and pulling one from another process.

Used by manager, worker and client alike.  A blob is written beside its place and renamed, so that a file
that is there is whole.  Knows nothing of who asks or why.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

from lfm.errors import LfmError
from lfm.monitor.payload import Buffer
from lfm.protocol.ids import Digest
from lfm.protocol.messages import CHUNK, BlobChunk, FetchBlob
from lfm.protocol.outcomes import INLINE_LIMIT, Blob, Inline, Payload

CREDITS = 8  # ranges asked for and not yet come: 8 MiB on the way


class BadBlob(LfmError):
    """What came is not what its digest says."""


def digest_of(pieces: Iterable[Buffer]) -> Digest:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return Digest(found.hexdigest())


class BlobStore:
    """A directory of blobs.  Safe for several processes at once: a blob's name is its content."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        if len(digest) != 64 or not digest.isalnum():
            raise ValueError(f"{digest!r} is not a digest")
        return self.directory / digest

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def size(self, digest: Digest) -> int:
        """FileNotFoundError if it is not here."""
        return self.path(digest).stat().st_size

    def add(self, pieces: Iterable[Buffer]) -> Blob:
        """Store bytes, hashed while they are written."""
        hashed, size = hashlib.sha256(), 0
        with NamedTemporaryFile(dir=self.directory, prefix=".new-", delete=False) as draft:
            try:
                for piece in pieces:
                    hashed.update(piece)
                    draft.write(piece)
                    size += memoryview(piece).nbytes
            except BaseException:
                Path(draft.name).unlink()
                raise
        digest = Digest(hashed.hexdigest())
        Path(draft.name).replace(self.path(digest))
        return Blob(digest, size)

    def adopt(self, path: Path) -> Blob:
        """Take a file over (moved, not copied, on the same file system)."""
        with path.open("rb") as file:
            digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
            size = os.fstat(file.fileno()).st_size
        path.replace(self.path(digest))
        return Blob(digest, size)

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """A range; FileNotFoundError if the blob is not here."""
        with self.path(digest).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def drop(self, digest: Digest) -> None:
        self.path(digest).unlink(missing_ok=True)

    def payload(self, pieces: list[Buffer]) -> Payload:
        """Inline if small, else stored here and named."""
        if sum(memoryview(p).nbytes for p in pieces) <= INLINE_LIMIT:
            return Inline(b"".join(pieces))
        return self.add(pieces)


def answer_fetch(path: Path, fetch: FetchBlob) -> BlobChunk:
    """The range that a peer asked for out of a file.  OSError if it cannot be read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = os.pread(file.fileno(), min(fetch.length, CHUNK), fetch.offset)
    return BlobChunk(fetch.digest, fetch.offset, size, data)


class Fetch:
    """Pulling one blob into a store, with a few ranges outstanding.  ``close()`` it if it is given up."""

    def __init__(self, store: BlobStore, digest: Digest, size: int) -> None:
        self.store, self.digest, self.size = store, digest, size
        self.done = False
        self._asked = 0
        self._come: set[int] = set()
        self._hashed, self._hash = 0, hashlib.sha256()  # as far as it came in order: so that its end costs no pause
        self._draft = NamedTemporaryFile(dir=store.directory, prefix=".part-", delete=False)  # noqa: SIM115
        if size == 0:
            self._finish()

    @property
    def received(self) -> int:
        return min(len(self._come) * CHUNK, self.size)

    def requests(self) -> list[FetchBlob]:
        """What to ask for now."""
        asks = []
        while self._asked < self.size and self._asked // CHUNK - len(self._come) < CREDITS:
            asks.append(FetchBlob(self.digest, self._asked, min(CHUNK, self.size - self._asked)))
            self._asked += CHUNK
        return asks

    def restart_requests(self) -> None:
        """What was asked and has not come will not come: the link was made anew."""
        missing = [at for at in range(0, self.size, CHUNK) if at not in self._come]
        self._come = {at for at in self._come if at < (missing[0] if missing else self.size)}
        self._asked = missing[0] if missing else self.size

    def feed(self, chunk: BlobChunk) -> bool:
        """Take a range; True when the blob lies in the store.  BadBlob if it is not what was asked for."""
        due = min(CHUNK, self.size - chunk.offset)
        if chunk.size != self.size or len(chunk.data) != due or chunk.offset % CHUNK or chunk.offset < 0:
            self.close()
            raise BadBlob(f"blob {self.digest[:12]} came in the wrong shape")
        if self.done or chunk.offset in self._come:
            return self.done
        at = 0
        while at < due:  # a disk that is just getting full takes a part, and says why not the rest
            at += os.pwrite(self._draft.fileno(), memoryview(chunk.data)[at:], chunk.offset + at)
        self._come.add(chunk.offset)
        if chunk.offset == self._hashed:
            self._hash.update(chunk.data)
            self._hashed += due
        if len(self._come) * CHUNK >= self.size:
            self._finish()
        return self.done

    def _finish(self) -> None:
        self._draft.close()
        draft = Path(self._draft.name)
        if self._hashed < self.size:
            with draft.open("rb") as file:
                file.seek(self._hashed)
                while piece := file.read(CHUNK):
                    self._hash.update(piece)
        if self._hash.hexdigest() != self.digest:
            self.close()
            raise BadBlob(f"blob {self.digest[:12]} was damaged on its way")
        draft.replace(self.store.path(self.digest))
        self.done = True

    def close(self) -> None:
        self._draft.close()
        Path(self._draft.name).unlink(missing_ok=True)

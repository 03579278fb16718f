"""Where a session keeps payloads too large for a message, until the manager has pulled them; and large results.

A private temporary directory, made when it is first needed and removed at the end; what a killed process left
behind is swept by the next one.  Counts who still needs each blob.  Where the manager's own store lies on this
very machine, blobs are linked into it and mapped out of it, and no byte goes through a socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import tempfile
import threading
from pathlib import Path

from lfm.blobs import BlobStore
from lfm.monitor.payload import Buffer
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import INLINE_LIMIT, Blob, Inline, Payload

PREFIX = "lfm-client-"
LOCK = "lock"
PATIENT_INLINE = 64 << 20  # bytes of small payloads on their way, above which even small ones go to the disk
SMALL = 1024  # bytes that always ride in the message


class Spool:
    """One session's blobs.  Safe for several threads."""

    def __init__(self, parent: Path | None = None, neighbour: Path | None = None) -> None:
        """``parent``: a private directory that somebody else removes; None: one of our own.
        ``neighbour``: the manager's store, if it is here."""
        self._parent = parent
        self._neighbour = neighbour
        self._own: Path | None = None
        self._lock_file: int | None = None
        self._store: BlobStore | None = None
        self._users: dict[Digest, int] = {}
        self._lock = threading.Lock()

    @property
    def store(self) -> BlobStore:
        with self._lock:
            if self._store is None:
                self._store = BlobStore(self._parent / "client" if self._parent else self._make())
            return self._store

    def _make(self) -> Path:
        if self._own is None:
            root = Path(tempfile.gettempdir())
            sweep(root)
            self._own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        self._lock_file = os.open(self._own / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        return self._own / "blobs"

    def payload(self, pieces: list[Buffer], waiting: int) -> Payload:
        """Inline if small and not too much is ``waiting`` in memory already, else a blob held by one user."""
        size = sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
        if size <= SMALL or (size <= INLINE_LIMIT and waiting + size <= PATIENT_INLINE):
            return Inline(b"".join(pieces))
        return self.keep(pieces)

    def keep(self, pieces: list[Buffer]) -> Blob:
        """Store a blob, held by one user more."""
        blob = self.store.add(pieces)
        self.hold(blob)
        return blob

    def offer(self, path: Path, blob: Blob) -> None:
        """A file from elsewhere as a blob, held by one user more; not copied, so it must stay as it is."""
        place = self.store.path(blob.digest)
        with contextlib.suppress(FileExistsError):
            try:
                place.hardlink_to(path)
            except FileExistsError:
                raise
            except OSError:  # on another file system
                place.symlink_to(path)
        self.hold(blob)

    def hold(self, blob: Blob) -> None:
        with self._lock:
            self._users[blob.digest] = self._users.get(blob.digest, 0) + 1

    def holds(self, digest: str) -> bool:
        """Whether somebody needs this blob, so that it is here."""
        with self._lock:
            return digest in self._users

    def release(self, blob: Blob) -> None:
        """One user less; without any the blob is removed."""
        with self._lock:
            left = self._users.get(blob.digest, 0) - 1
            if left > 0:
                self._users[blob.digest] = left
                return
            self._users.pop(blob.digest, None)
            if self._store is not None:
                self._store.drop(blob.digest)

    def map(self, digest: Digest) -> Buffer:
        """The content of a blob that came, as a private mapping that outlives its file."""
        return self._map(self.store.path(digest))

    @staticmethod
    def _map(path: Path) -> Buffer:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)) if size else b""

    def lend(self, blob: Blob) -> None:
        """Let the manager find a blob in its own store, where that is possible; else it will ask for it."""
        if self._neighbour is not None:
            with contextlib.suppress(OSError):
                os.link(self.store.path(blob.digest), self._neighbour / blob.digest)

    def borrow(self, blob: Blob) -> Buffer | None:
        """The content of a blob that need not be asked for."""
        if self.holds(blob.digest):  # what was sent came back
            return self._map(self.store.path(blob.digest))
        if self._neighbour is not None:
            with contextlib.suppress(OSError):
                path = self._neighbour / blob.digest
                return self._map(path) if path.stat().st_size == blob.size else None
        return None

    def forget(self, digest: Digest) -> None:
        """Remove what nobody holds."""
        with self._lock:
            if digest not in self._users and self._store is not None:
                self._store.drop(digest)

    def close(self) -> None:
        """Remove everything that is our own."""
        with self._lock:
            if self._own is not None:
                shutil.rmtree(self._own, ignore_errors=True)
                self._own = None
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None


def sweep(root: Path) -> None:
    """Remove what clients that died without a word left in ``root``: nobody holds their lock any more."""
    for left in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.stat().st_uid == os.getuid() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)

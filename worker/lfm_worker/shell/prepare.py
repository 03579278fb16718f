"""Unpacks an archive in a process of its own, or a small one in a thread, so that the worker's loop never waits for a disk.

``python -m lfm_worker.shell.prepare environment|overlay ARCHIVE DIGEST INTO`` prints lines of JSON on stdout:
``{"done", "total"}`` now and then, at last ``{"bytes"}`` or ``{"reason", "cause"}``.  Dies with the worker.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lfm.protocol.ids import Digest
from lfm.shortage import shortage
from lfm_worker.core import events as e
from lfm_worker.core.items import Item
from lfm_worker.shell.unpack import UnpackFailed, unpack

PR_SET_PDEATHSIG = 1
REPORT_EVERY = 0.5  # seconds


def unpack_overlay(archive: Path | bytes, digest: Digest, into: Path) -> Path:
    """The folder of an overlay; unpacked beside its place and renamed, so that a folder that is there is whole."""
    place = into / digest
    if place.is_dir():
        return place
    draft = Path(tempfile.mkdtemp(prefix=".new-", dir=into))  # ours: made just now, and the only thing removed
    try:
        source = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
        with source, tarfile.open(fileobj=source) as tar:
            tar.extractall(draft, filter="data")
        draft.rename(place)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not place.is_dir():  # another was faster
            raise
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return place


def tree_size(path: Path) -> int:
    """Bytes on the disk, each hard-linked file once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for top, _, files in os.walk(path):
        for name in files:
            found = (Path(top) / name).lstat()
            if found.st_nlink > 1:
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            total += found.st_blocks * 512
    return total


def cause_of(error: BaseException, archive: Path | None = None) -> e.Cause:
    """What could help against it."""
    if isinstance(error, UnpackFailed):
        known: dict[int, e.Cause] = {UnpackFailed.CORRUPT: "corrupt", UnpackFailed.FULL: "full"}
        if found := known.get(error.code) or shortage(error.__cause__):
            return found
    elif found := shortage(error):
        return found
    elif isinstance(error, tarfile.TarError | EOFError | UnicodeDecodeError):
        return "corrupt"
    return "gone" if archive is not None and not archive.exists() else "other"


class Preparation:
    """One running preparation.  Register ``fileno()``; when it is readable, ``receive()`` until it gives an event."""

    def __init__(self, item: Item, archive: Path, into: Path) -> None:
        self.item = item
        self._started = time.monotonic()
        self._said = b""
        self.far: tuple[int, int] | None = None  # bytes of the archive that are done, and all of them
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lfm_worker.shell.prepare", item.kind, archive, item.digest, into],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._pipe.fileno()

    def receive(self) -> e.Prepared | e.PrepareFailed | None:
        try:
            piece = os.read(self.fileno(), 65536)
        except BlockingIOError:
            return None
        self._said += piece
        if piece:
            *lines, last = self._said.split(b"\n")
            for line in lines[-1:]:  # the newest says it all
                with suppress(ValueError, KeyError, TypeError):
                    said = json.loads(line)
                    self.far = said["done"], said["total"]
                    self._said = last
            return None
        self._pipe.close()
        self._process.wait()
        return self._result()

    def _result(self) -> e.Prepared | e.PrepareFailed:
        try:
            said: dict[str, Any] = json.loads(self._said.strip().rpartition(b"\n")[2])
        except ValueError:
            status = self._process.returncode
            return e.PrepareFailed(self.item, f"unpacking ended with status {status}", "other")
        if "reason" in said:
            return e.PrepareFailed(self.item, said["reason"], said["cause"])
        return e.Prepared(self.item, said["bytes"], time.monotonic() - self._started)

    def close(self) -> None:
        """End it; what it began to unpack is never mistaken for a whole."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


class InThread:
    """The same for a small overlay, which takes less to unpack than a process to start.

    Not in the loop's own thread: hundreds of files take 20 to 200 ms.
    """

    far = None

    def __init__(self, item: Item, data: bytes, into: Path) -> None:
        self.item = item
        self._event: e.Prepared | e.PrepareFailed | None = None
        self._over, self._open = os.pipe()
        self._thread = threading.Thread(target=self._work, args=(data, into), name="unpack", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads for this user
            self._work(data, into)

    def _work(self, data: bytes, into: Path) -> None:
        try:
            unpack_overlay(data, self.item.digest, into)
            self._event = e.Prepared(self.item, len(data), 0.0)
        except Exception as error:  # a damaged archive raises whatever it likes
            self._event = e.PrepareFailed(self.item, f"overlay cannot be unpacked: {error}", cause_of(error))
        finally:
            os.close(self._open)

    def fileno(self) -> int:
        return self._over

    def receive(self) -> e.Prepared | e.PrepareFailed | None:
        self.close()
        return self._event

    def close(self) -> None:
        """Wait for its end, which is near."""
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._over)


class Lines:
    """Says how far it is, not too often."""

    def __init__(self) -> None:
        self._due = time.monotonic() + REPORT_EVERY

    def __call__(self, done: int, total: int) -> None:
        if (now := time.monotonic()) >= self._due:
            self._due = now + REPORT_EVERY
            print(json.dumps({"done": done, "total": total}), flush=True)


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    kind, archive, digest, into = sys.argv[1], Path(sys.argv[2]), Digest(sys.argv[3]), Path(sys.argv[4])
    try:
        place = unpack_overlay(archive, digest, into) if kind == "overlay" else unpack(archive, digest, into, report=Lines())
        said: dict[str, Any] = {"bytes": tree_size(place)}
    except Exception as error:
        said = {"reason": str(error) or type(error).__name__, "cause": cause_of(error, archive)}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()

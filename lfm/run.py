"""The run directory: where one manager keeps its keys, its address and its memory.

Mode 0700, owned by the user.  It holds ``keys.json`` (all key pairs), one connection file per role
(``client.json``, ``worker.json``, ``viewer.json``: all that the other end needs, nothing more), and what the
manager stores.  Files that others can read are refused: a key that leaked is no key.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfm.errors import ConnectionFailed

ROLES = ("client", "worker", "viewer")
EMBEDDED = "lfm-run-"  # how the directories of runs begin that a script has for itself, among temporary files


def home() -> Path:
    """``$LFM_HOME``, else ``~/.lfm``."""
    return Path(os.environ.get("LFM_HOME") or Path.home() / ".lfm")


def runs_root() -> Path:
    """Where runs with a name live."""
    return home() / "runs"


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.rename(path)


def read_private(path: Path) -> dict[str, Any]:
    """The JSON object of a file that only its owner can read.  ConnectionFailed otherwise."""
    try:
        with open(path) as file:
            info = os.fstat(file.fileno())
            if info.st_mode & 0o077 or info.st_uid not in (os.getuid(), 0):
                raise ConnectionFailed(f"{path} holds keys and others can read it; run: chmod 600 {path}")
            content = json.load(file)
    except FileNotFoundError:
        raise ConnectionFailed(f"there is no connection file {path}; is the manager running?") from None
    except (OSError, ValueError) as error:
        raise ConnectionFailed(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise ConnectionFailed(f"{path} is not a connection file")
    return content


@dataclass(frozen=True, slots=True)
class ConnectionFile:
    """All that one role needs to reach a manager.  Keys are Z85 text."""

    run: str
    server_id: str
    addresses: tuple[str, ...]  # "tcp://10.0.0.1:9100": every address under which the manager may be reached
    server_key: str
    role: str
    public_key: str
    secret_key: str
    pid: int = 0
    host: str = ""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ConnectionFile:
        """ConnectionFailed if it is absent, malformed, or readable by others."""
        content = read_private(Path(path))
        try:
            content["addresses"] = tuple(content["addresses"])
            return cls(**content)
        except (KeyError, TypeError):
            raise ConnectionFailed(f"{path} is not a connection file of this version of lfm") from None


class RunDirectory:
    """A manager's own directory; only a manager writes here."""

    def __init__(self, path: Path, keys: dict[str, Any]) -> None:
        self.path = path
        self.name: str = keys["name"]
        self.server_id: str = keys["server_id"]
        self._keys = keys

    @classmethod
    def create(cls, path: Path, name: str) -> RunDirectory:
        """A new one, or the one that is there already (same keys).  ConnectionFailed if it is not safe."""
        import zmq

        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / "keys.json").exists():
            keys: dict[str, Any] = {"name": name, "server_id": secrets.token_hex(8)}
            for role in ("server", *ROLES):
                public, secret = zmq.curve_keypair()
                keys[role] = [public.decode(), secret.decode()]
            cls._check(path)
            write_private(path / "keys.json", json.dumps(keys))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """One that exists.  ConnectionFailed if it does not, or if others can enter it."""
        if not path.is_dir():
            raise ConnectionFailed(f"there is no run directory {path}")
        cls._check(path)
        return cls(path.resolve(), read_private(path / "keys.json"))

    @staticmethod
    def _check(path: Path) -> None:
        info = path.stat()
        if info.st_uid != os.getuid():
            raise ConnectionFailed(f"the run directory {path} belongs to somebody else")
        if info.st_mode & 0o077:
            raise ConnectionFailed(f"others can enter the run directory {path}; run: chmod 700 {path}")

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def environments(self) -> Path:
        """Tarballs by their digest, for workers on the same machine: links into the user's store."""
        return self.path / "environments"

    @property
    def server_keys(self) -> tuple[bytes, bytes]:
        """(public, secret)"""
        public, secret = self._keys["server"]
        return public.encode(), secret.encode()

    def role_of(self, public_key: bytes) -> str | None:
        """The role that a Z85 public key was made for."""
        return next((role for role in ROLES if self._keys[role][0].encode() == public_key), None)

    def connection_file(self, role: str) -> Path:
        return self.path / f"{role}.json"

    def publish(self, addresses: Sequence[str]) -> None:
        """Write the three connection files: from now on others find this manager."""
        for role in ROLES:
            public, secret = self._keys[role]
            content = ConnectionFile(
                self.name, self.server_id, tuple(addresses), self._keys["server"][0], role, public, secret,
                os.getpid(), socket.gethostname(),
            )
            write_private(self.connection_file(role), json.dumps(asdict(content), indent=1))

    def withdraw(self) -> None:
        """Take the connection files back: this manager is not running any more."""
        for role in ROLES:
            self.connection_file(role).unlink(missing_ok=True)


def find_run(run: str | os.PathLike[str] | None = None, role: str = "client") -> ConnectionFile:
    """The connection file of a run: a name, a run directory, a connection file; None: ``LFM_RUN``, else the
    user's newest run.  ConnectionFailed, with the way out, if there is none."""
    return ConnectionFile.read(locate(run, role))


def find_embedded(role: str) -> ConnectionFile | None:
    """Of the run that a script of the user's has for itself on this machine; of several, the newest."""
    found = []
    for file in Path(tempfile.gettempdir()).glob(f"{EMBEDDED}*/{role}.json"):
        with contextlib.suppress(OSError, ConnectionFailed):  # another user's, or gone by now
            one = ConnectionFile.read(file)
            os.kill(one.pid, 0)
            found.append((file.stat().st_mtime, one))
    return max(found, key=lambda each: each[0])[1] if found else None


def locate(run: str | os.PathLike[str] | None = None, role: str = "client") -> Path:
    """The path of the connection file that ``find_run`` reads."""
    chosen = run if run is not None else os.environ.get("LFM_RUN") or None
    if chosen is None:
        files = [(p.stat().st_mtime, p) for p in runs_root().glob(f"*/{role}.json")]
        if not files:
            raise ConnectionFailed("no manager is running here; start one with: lfm manager start --background")
        return max(files)[1]
    path = Path(chosen)
    if path.is_file():
        return path
    if path.is_dir() and (path / "keys.json").exists():
        directory = path
    elif len(path.parts) == 1:
        directory = runs_root() / path
        if not directory.is_dir():
            known = sorted(p.parent.name for p in runs_root().glob("*/keys.json"))
            there = f"; there are: {', '.join(known)}" if known else ""
            raise ConnectionFailed(f"there is no run named {str(chosen)!r}{there}; see: lfm manager start --help")
    else:
        raise ConnectionFailed(f"{chosen} is neither a run directory nor a connection file")
    file = directory / f"{role}.json"
    if not file.exists():
        raise ConnectionFailed(
            f"the manager of run {directory.name!r} is not running; start it with: lfm manager start --run-dir {directory}"
        )
    return file

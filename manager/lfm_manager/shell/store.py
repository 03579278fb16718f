"""What lasts: sessions, functions, environments, tasks and results in SQLite, in the run directory.

Writes are gathered and committed together, before anything that depends on them leaves the manager.  WAL on a
local disk; a rollback journal on a network file system, where WAL's shared memory does not work.  Messages are
kept as they travel (``lfm.protocol.codec``), so nothing here knows their fields.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from lfm.errors import LfmError, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm_manager.core import commands as c
from lfm_manager.core.events import Recovered, SavedSession, SavedTask

log = logging.getLogger(__name__)

VERSION = 1
NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "afs", "ceph", "panfs", "9p", "orangefs", "pvfs2"}
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, hello BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS declared (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, session TEXT NOT NULL, submit BLOB NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '', finished BLOB);
"""

Saved = (
    c.SaveSession | c.ForgetSession | c.SaveDeclared | c.SaveTask | c.SaveAttempt | c.SaveResult | c.ForgetTask
)
_M = TypeVar("_M")


class StoreFailed(LfmError):
    """The store cannot be used: one line that says why and what to do."""


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on; "" where it cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    here = str(path.resolve())
    points = [(f[1].replace("\\040", " "), f[2]) for f in mounts if len(f) > 2]
    fitting = [(len(p), kind) for p, kind in points if here == p or here.startswith(p.rstrip("/") + "/")]
    return max(fitting, default=(0, ""))[1]


class Store:
    """One writer: the manager that holds the run directory's lock."""

    def __init__(self, path: Path) -> None:
        kind = file_system(path.parent)
        remote = kind in NETWORK or kind.startswith("fuse.")
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self.mode = self._prepare("TRUNCATE" if remote else "WAL")
        except sqlite3.Error as error:
            raise StoreFailed(f"cannot use {path}: {error}") from None
        self.file_system = kind
        self._open = False  # a transaction
        self._writers: dict[type, Callable[[Any], None]] = {
            c.SaveSession: self._save_session, c.ForgetSession: self._forget_session,
            c.SaveDeclared: self._save_declared, c.SaveTask: self._save_task, c.SaveAttempt: self._save_attempt,
            c.SaveResult: self._save_result, c.ForgetTask: self._forget_task,
        }

    def _prepare(self, journal: str) -> str:
        run = self._db.execute
        mode = str(run(f"PRAGMA journal_mode={journal}").fetchone()[0]).upper()
        # WAL: a commit survives the death of this process, and is written through at checkpoints
        run(f"PRAGMA synchronous={'NORMAL' if mode == 'WAL' else 'FULL'}")
        run("PRAGMA busy_timeout=5000")
        self._db.executescript(SCHEMA)
        found = run("SELECT value FROM meta WHERE name = 'version'").fetchone()
        if found is None:
            run("INSERT INTO meta VALUES ('version', ?)", (str(VERSION),))
        elif found[0] != str(VERSION):
            raise StoreFailed(f"the run directory was written by another version of lfm (store {found[0]}, this is {VERSION})")
        return mode

    # ------------------------------------------------------------ writing

    def write(self, command: Saved) -> None:
        """Write down; lasts once ``commit`` has returned.  StoreFailed if it cannot be written."""
        try:
            if not self._open:
                self._db.execute("BEGIN IMMEDIATE")
                self._open = True
            self._writers[type(command)](command)
        except sqlite3.Error as error:
            raise StoreFailed(f"cannot write to the run directory: {error}") from None

    def commit(self) -> None:
        if self._open:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StoreFailed(f"cannot write to the run directory: {error}") from None
            self._open = False

    def _save_session(self, command: c.SaveSession) -> None:
        self._db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (command.key, encode(command.hello)))

    def _forget_session(self, command: c.ForgetSession) -> None:
        self._db.execute("DELETE FROM sessions WHERE key = ?", (command.key,))

    def _save_declared(self, command: c.SaveDeclared) -> None:
        declared = command.declared
        name = declared.function if isinstance(declared, m.DeclareFunction) else declared.key
        self._db.execute("INSERT OR IGNORE INTO declared (id, message) VALUES (?, ?)", (name, encode(declared)))

    def _save_task(self, command: c.SaveTask) -> None:
        submit = command.submit
        self._db.execute(
            "INSERT OR IGNORE INTO tasks (id, session, submit) VALUES (?, ?, ?)",
            (submit.task, command.session, encode(submit)),
        )

    def _save_attempt(self, command: c.SaveAttempt) -> None:
        self._db.execute(
            "UPDATE tasks SET attempt = ?, worker = ? WHERE id = ?", (command.attempt, command.worker, command.task)
        )

    def _save_result(self, command: c.SaveResult) -> None:
        finished = command.finished
        self._db.execute("UPDATE tasks SET finished = ? WHERE id = ?", (encode(finished), finished.task))

    def _forget_task(self, command: c.ForgetTask) -> None:
        self._db.execute("DELETE FROM tasks WHERE id = ?", (command.task,))

    # ------------------------------------------------------------ reading

    def recover(self, blobs: tuple[Any, ...]) -> Recovered | None:
        """What an earlier manager left here; None if this is the first."""
        declared = [self._read(row[0], object) for row in self._db.execute("SELECT message FROM declared ORDER BY number")]
        sessions: dict[str, tuple[m.ClientHello, list[SavedTask]]] = {
            key: (self._read(hello, m.ClientHello), [])
            for key, hello in self._db.execute("SELECT key, hello FROM sessions")
        }
        if not declared and not sessions:
            return None
        rows = self._db.execute("SELECT session, submit, attempt, worker, finished FROM tasks ORDER BY number")
        for session, submit, attempt, worker, finished in rows:
            if session in sessions:
                done = self._read(finished, m.Finished) if finished is not None else None
                sessions[session][1].append(SavedTask(self._read(submit, m.Submit), attempt, worker, done))
        return Recovered(
            tuple(d for d in declared if isinstance(d, m.DeclareEnvironment)),
            tuple(d for d in declared if isinstance(d, m.DeclareFunction)),
            tuple(SavedSession(key, hello, tuple(tasks)) for key, (hello, tasks) in sessions.items()),
            blobs,
        )

    @staticmethod
    def _read(frame: bytes, kind: type[_M]) -> _M:
        try:
            message = decode(frame)
        except ProtocolError as error:
            raise StoreFailed(f"the run directory holds what this version of lfm cannot read: {error}") from None
        if not isinstance(message, kind):
            raise StoreFailed("the run directory is damaged")
        return cast(_M, message)

    def close(self) -> None:
        self.commit()
        self._db.close()

"""What lasts: sessions, functions, environments, tasks and results in SQLite, in the run directory.

Writes are gathered in memory and committed together, before anything that depends on them leaves the manager; a
call that comes and goes between two commits costs the disk nothing.  WAL on a local disk; a rollback journal on a
network file system, where WAL's shared memory does not work.  Messages are kept as they travel
(``lfm.protocol.codec``); of their fields only the payloads are known here, as what is large is kept apart: a
manager that comes back, or holds many calls, does not read it before it is needed.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any, TypeVar, assert_never, cast

from lfm.errors import LfmError, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.protocol.ids import TaskId
from lfm.protocol.outcomes import Blob, Inline, Payload
from lfm_manager.core import commands as c
from lfm_manager.core.events import Recovered, SavedSession, SavedTask
from lfm_manager.core.payloads import SMALL, inline_bytes, without_arguments, without_value

log = logging.getLogger(__name__)

VERSION = 4
FORGOTTEN = 1000  # calls whose rows are removed together
NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "afs", "ceph", "panfs", "9p", "orangefs", "pvfs2"}
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, hello BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS declared (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL, session TEXT NOT NULL, submit BLOB NOT NULL, size INTEGER NOT NULL,
    arguments BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (id TEXT PRIMARY KEY, attempt INTEGER NOT NULL, worker TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, brief BLOB NOT NULL, whole BLOB) WITHOUT ROWID;
"""
READ = """
SELECT session, submit, size, coalesce(attempt, 0), coalesce(worker, ''), brief, whole IS NOT NULL
FROM tasks LEFT JOIN attempts USING (id) LEFT JOIN results USING (id) ORDER BY number
"""

Saved = (
    c.SaveSession | c.ForgetSession | c.SaveDeclared | c.ForgetDeclared | c.SaveTask | c.SaveAttempt | c.SaveResult | c.ForgetTask
)
_M = TypeVar("_M")


class StoreFailed(LfmError):
    """The store cannot be used: one line that says why and what to do.  ``passing``: it may work again later."""

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


LASTING = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE)


TROUBLE = (sqlite3.Error, MemoryError)  # SQLite says the latter by Python's own name


def _failed(what: str, error: sqlite3.Error | MemoryError) -> StoreFailed:
    if isinstance(error, MemoryError):
        return StoreFailed(f"{what}: not enough memory", passing=True)
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return StoreFailed(f"{what}: {error}", passing=code not in LASTING)


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on; "" where it cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    here = str(path.resolve())
    points = [(f[1].replace("\\040", " "), f[2]) for f in mounts if len(f) > 2]
    fitting = [(len(p), n, kind) for n, (p, kind) in enumerate(points) if here == p or here.startswith(p.rstrip("/") + "/")]
    return max(fitting, default=(0, 0, ""))[2]  # the innermost, and of several at one place the last


class Store:
    """One writer: the manager that holds the run directory's lock."""

    def __init__(self, path: Path) -> None:
        kind = file_system(path.parent)
        remote = kind in NETWORK or kind.startswith("fuse.")
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self.mode = self._prepare("TRUNCATE" if remote else "WAL")
            self._number = int(self._db.execute("SELECT coalesce(max(number), 0) FROM tasks").fetchone()[0])
        except sqlite3.Error as error:
            raise StoreFailed(f"cannot use {path}: {error}") from None
        self.file_system = kind
        self.path, self._inode = path, path.stat().st_ino
        self._forgotten: set[tuple[TaskId]] = set()
        self._forget = False  # with the next commit, few as they may be
        self._all_written()

    def __str__(self) -> str:
        """How it writes, and on what."""
        return f"{self.mode.lower()} on {self.file_system or 'an unknown file system'}"

    def is_there(self) -> bool:
        """False: somebody removed the file, and what is written goes nowhere."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a network file system that is away for a while

    def _all_written(self) -> None:
        """What has been written is not to be written again."""
        self._sessions: dict[str, m.ClientHello | None] = {}
        self._declared: dict[str, m.DeclareFunction | m.DeclareEnvironment | None] = {}  # None: to be forgotten
        self._tasks: dict[TaskId, c.SaveTask] = {}
        self._attempts: dict[TaskId, c.SaveAttempt] = {}
        self._results: dict[TaskId, m.Finished] = {}
        self.dirty = False

    def _prepare(self, journal: str) -> str:
        run = self._db.execute
        mode = str(run(f"PRAGMA journal_mode={journal}").fetchone()[0]).upper()
        # WAL: a commit survives the death of this process, and is written through at checkpoints
        run(f"PRAGMA synchronous={'NORMAL' if mode == 'WAL' else 'FULL'}")
        run("PRAGMA busy_timeout=5000")
        run("PRAGMA wal_autocheckpoint=16000")  # pages: what comes and goes in between never reaches the database
        run("PRAGMA cache_size=-65536")
        self._db.executescript(SCHEMA)
        found = run("SELECT value FROM meta WHERE name = 'version'").fetchone()
        if found is None:
            run("INSERT INTO meta VALUES ('version', ?)", (str(VERSION),))
        elif found[0] != str(VERSION):
            raise StoreFailed(f"the run directory was written by another version of lfm (store {found[0]}, this is {VERSION})")
        return mode

    # ------------------------------------------------------------ writing

    def write(self, command: Saved) -> None:
        """Remember to write it down; it lasts once ``commit`` has returned.

        To forget may wait: a call that comes back after a crash, although its client has its answer, does no harm.
        """
        if not isinstance(command, c.ForgetTask):
            self.dirty = True
        match command:
            case c.SaveAttempt(task):
                self._attempts[task] = command
            case c.SaveResult(finished):
                self._results[finished.task] = finished
            case c.SaveTask(session, submit, copy_of):
                if copy_of is not None and (arguments := self.arguments(copy_of)) is not None:
                    command = c.SaveTask(session, submit.but(arguments=arguments))
                self._tasks[submit.task] = command
                if (submit.task,) in self._forgotten:  # submitted once more: what is known of the first time goes before
                    self._forget = True
            case c.ForgetTask(task):
                self._attempts.pop(task, None)
                self._results.pop(task, None)
                if self._tasks.pop(task, None) is None:
                    self._forgotten.add((task,))
            case c.SaveDeclared(declared):
                self._declared[_name_of(declared)] = declared
            case c.ForgetDeclared(name):
                self._declared[name] = None
            case c.SaveSession(key, hello):
                self._sessions[key] = hello
            case c.ForgetSession(key):
                self._sessions[key] = None
            case _:
                assert_never(command)

    def forget(self) -> None:
        """What was forgotten so far is not to come back after the next commit."""
        self._forget = bool(self._forgotten)

    def commit(self) -> None:
        """Write down all that there is.  StoreFailed if that cannot be done; it may be tried again."""
        if not self.dirty and not self._forget and len(self._forgotten) < FORGOTTEN:
            return
        number, gone = self._number, self._forgotten if self._forget or len(self._forgotten) >= FORGOTTEN else set()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._delete(gone)
                self._write_all()
                self._db.execute("COMMIT")
            except BaseException:
                self._number = number
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except TROUBLE as error:
            raise _failed(f"cannot write to the run directory {self.path.parent}", error) from None
        if gone:
            self._forgotten = set()
        self._forget = False
        self._all_written()

    def _write_all(self) -> None:
        many = self._db.executemany
        for key, hello in self._sessions.items():
            if hello is None:
                self._db.execute("DELETE FROM sessions WHERE key = ?", (key,))
            else:
                self._db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (key, encode(hello)))
        if self._declared:
            many("DELETE FROM declared WHERE id = ?", [(name,) for name, d in self._declared.items() if d is None])
            rows = [(name, encode(d)) for name, d in self._declared.items() if d is not None]
            many("INSERT OR IGNORE INTO declared (id, message) VALUES (?, ?)", rows)
        if self._tasks:
            first, self._number = self._number + 1, self._number + len(self._tasks)
            saved = [(s.submit.task, n, s.session, *_apart(s.submit)) for n, s in enumerate(self._tasks.values(), first)]
            many("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?, ?, ?)", saved)
        if self._attempts:
            tried = [(a.task, a.attempt, a.worker) for a in self._attempts.values()]
            many("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", tried)
        if self._results:
            done = [(task, *_brief(finished)) for task, finished in self._results.items()]
            many("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", done)

    def _delete(self, gone: set[tuple[TaskId]]) -> None:
        for table in ("tasks", "attempts", "results") if gone else ():
            self._db.executemany(f"DELETE FROM {table} WHERE id = ?", sorted(gone))

    # ------------------------------------------------------------ reading

    def arguments(self, task: TaskId) -> Payload | None:
        """What a call that was saved is called with; None if it is not here any more."""
        if (pending := self._tasks.get(task)) is not None:
            return pending.submit.arguments
        row = self._row("SELECT submit, arguments FROM tasks WHERE id = ?", task)
        if row is None:
            return None
        return Inline(row[1]) if row[1] is not None else self._read(row[0], m.Submit).arguments

    def finished(self, task: TaskId) -> m.Finished | None:
        """How a call that was saved ended, with all that it returned and printed; None if that is not here any more."""
        if (pending := self._results.get(task)) is not None:
            return pending
        row = self._row("SELECT coalesce(whole, brief) FROM results WHERE id = ?", task)
        return self._read(row[0], m.Finished) if row is not None else None

    def keeps(self, task: TaskId) -> bool:
        """Whether ``finished`` has an answer."""
        return task in self._results or self._row("SELECT 1 FROM results WHERE id = ?", task) is not None

    def _row(self, query: str, task: TaskId) -> Any:
        try:
            return self._db.execute(query, (task,)).fetchone()
        except TROUBLE as error:
            raise _failed(f"cannot read the run directory {self.path.parent}", error) from None

    def recover(self, blobs: tuple[Any, ...]) -> Recovered | None:
        """What an earlier manager left here; None if this is the first."""
        declared = [self._read(row[0], object) for row in self._db.execute("SELECT message FROM declared ORDER BY number")]
        sessions: dict[str, tuple[m.ClientHello, list[SavedTask]]] = {
            key: (self._read(hello, m.ClientHello), [])
            for key, hello in self._db.execute("SELECT key, hello FROM sessions")
        }
        if not declared and not sessions:
            return None
        for table in ("results", "attempts"):  # of calls that were over, and whose session ended, when a manager was killed
            self._db.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM tasks WHERE session NOT IN (SELECT key FROM sessions))")
        self._db.execute("DELETE FROM tasks WHERE session NOT IN (SELECT key FROM sessions)")
        for session, submit, size, attempt, worker, brief, kept in self._db.execute(READ):
            done = self._read(brief, m.Finished) if brief is not None else None
            sessions[session][1].append(SavedTask(self._read(submit, m.Submit), attempt, worker, done, size, bool(kept)))
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

    def close(self, commit: bool = True) -> None:
        """StoreFailed if something could not be written: its peers do not believe that it was, and say it again."""
        if not commit:
            self._db.close()
            return
        try:
            self.commit()
            self.forget()
            try:
                self.commit()  # one transaction: on a network file system each is written through
            except StoreFailed as error:
                log.warning("what is over could not be removed from the store: %s", error)
        finally:
            self._db.close()


def _name_of(declared: m.DeclareFunction | m.DeclareEnvironment) -> str:
    return declared.function if isinstance(declared, m.DeclareFunction) else declared.key


def _apart(submit: m.Submit) -> tuple[bytes, int, bytes | None]:
    """A call without its arguments, their size (0: they are with it), and they."""
    arguments = submit.arguments
    if isinstance(arguments, Blob) or len(arguments.data) <= SMALL:
        return encode(submit), 0, None
    return encode(without_arguments(submit)), len(arguments.data), arguments.data


def _brief(finished: m.Finished) -> tuple[bytes, bytes | None]:
    """The end of a call without its value; and with it, if that is much more."""
    if inline_bytes(finished) <= SMALL:
        return encode(finished), None
    return encode(without_value(finished)), encode(finished)

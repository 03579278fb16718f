"""What calls of each category took, over all runs of this user: the next run's first call is well sized.

A small SQLite file beside the runs.  Losing it costs nothing but learning, so no trouble with it ever stops a
manager: it is logged, and the run goes on without.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from lfm.protocol.resources import Usage
from lfm.run import home
from lfm_manager.core.commands import SaveMeasurement
from lfm_manager.core.events import Measured
from lfm_manager.shell.store import NETWORK, file_system

log = logging.getLogger(__name__)

KEPT = 256  # measurements of a category
EVERY = 5.0  # seconds between two writes
_USAGE = [f.name for f in fields(Usage)]
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS measurements (
    number INTEGER PRIMARY KEY, category TEXT NOT NULL, run TEXT NOT NULL, at REAL NOT NULL, input_bytes INTEGER NOT NULL,
    given_cores REAL, given_memory INTEGER, given_disk INTEGER, {", ".join(_USAGE)});
CREATE INDEX IF NOT EXISTS by_category ON measurements (category, number);
"""


def path() -> Path:
    return home() / "history.db"


class History:
    def __init__(self, file: Path | None = None) -> None:
        """sqlite3.Error or OSError if it cannot be used."""
        file = file or path()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remote = file_system(file.parent) in NETWORK
        self._db = sqlite3.connect(file, isolation_level=None, timeout=0.5)
        self._db.execute(f"PRAGMA journal_mode={'TRUNCATE' if remote else 'WAL'}")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)
        file.chmod(0o600)
        self._waiting: dict[str, deque[tuple[str, float, SaveMeasurement]]] = {}
        self._due = 0.0

    # ------------------------------------------------------------ writing

    def add(self, run: str, at: float, measured: SaveMeasurement, now: float) -> None:
        """Remember to write it down.  Of many between two writes the latest of each category are enough."""
        if not self._waiting:
            self._due = now + EVERY
        rows = self._waiting.get(measured.category)
        if rows is None:
            rows = self._waiting[measured.category] = deque(maxlen=KEPT)
        rows.append((run, at, measured))

    def deadline(self) -> float | None:
        return self._due if self._waiting else None

    def write(self) -> None:
        """Write what waits, and drop what is too old to matter."""
        if not self._waiting:
            return
        rows = [_row(*entry) for entries in self._waiting.values() for entry in entries]
        self._waiting = {}
        marks = ", ".join("?" * len(rows[0]))
        names = ["category", "run", "at", "input_bytes", "given_cores", "given_memory", "given_disk", *_USAGE]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(f"INSERT INTO measurements ({', '.join(names)}) VALUES ({marks})", rows)
                for category in {row[0] for row in rows}:
                    self._db.execute(
                        "DELETE FROM measurements WHERE category = ? AND number <= (SELECT number FROM measurements"
                        " WHERE category = ? ORDER BY number DESC LIMIT 1 OFFSET ?)", (category, category, KEPT),
                    )
            finally:
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            log.warning("cannot write the history of measurements: %s", error)

    # ------------------------------------------------------------ reading

    def measurements(self) -> Iterator[Measured]:
        """All that is known, oldest first."""
        rows = self._db.execute(f"SELECT category, input_bytes, {', '.join(_USAGE)} FROM measurements ORDER BY number")
        for category, input_bytes, *usage in rows:
            yield Measured(category, input_bytes, Usage(*usage))

    def rows(self) -> list[dict[str, Any]]:
        """Everything, for people and scripts."""
        found = self._db.execute("SELECT * FROM measurements ORDER BY number")
        names = [column[0] for column in found.description][1:]
        return [dict(zip(names, row[1:], strict=True)) for row in found]

    def forget(self, category: str | None) -> int:
        """Of one category, or of all; how many measurements those were."""
        if category is None:
            return self._db.execute("DELETE FROM measurements").rowcount
        return self._db.execute("DELETE FROM measurements WHERE category = ?", (category,)).rowcount

    def close(self) -> None:
        self.write()
        self._db.close()


def _row(run: str, at: float, measured: SaveMeasurement) -> tuple[Any, ...]:
    given, usage = measured.allocation, measured.usage
    return (
        measured.category, run, at, measured.input_bytes, given.cores, given.memory, given.disk,
        *(getattr(usage, name) for name in _USAGE),
    )


def opened() -> History | None:
    """The user's history, or None, with a line in the log, if it cannot be used."""
    try:
        return History()
    except (sqlite3.Error, OSError) as error:
        log.warning("no history of measurements: %s: %s", path(), error)
        return None

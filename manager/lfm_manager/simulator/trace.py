"""Reading a trace: one line per call, with what it really took.

Columns by name, in any order, plain or gzipped CSV: ``category``, ``wall_s`` and ``memory_mb`` must be there;
``input_size_bytes``, ``cores``, ``disk_mb``, ``preset_memory_mb``, ``workflow`` and ``task_id`` may be.
MB are 10^6 bytes; an empty field is not known.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TextIO

MB = 1e6
NEEDED = ("category", "wall_s", "memory_mb")


class BadTrace(ValueError):
    """A trace that cannot be read; says the line."""


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of a trace is, and what it truly needs.  Bytes and seconds."""

    category: str
    input_bytes: float
    wall_s: float
    cores: float
    memory: float
    disk: float
    hint: float | None  # the memory that its author asked for


def read_trace(path: Path) -> list[Call]:
    """All calls in the order of the file.  Raises BadTrace with file and line."""
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
            return list(_calls(file, path))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadTrace(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _calls(file: TextIO, path: Path) -> Iterator[Call]:
    rows = csv.DictReader(file)
    missing = [name for name in NEEDED if name not in (rows.fieldnames or ())]
    if missing:
        raise BadTrace(f"{path}: line 1: no column {', '.join(missing)}")
    try:
        for row in rows:
            try:
                yield _call(row)
            except (ValueError, TypeError) as error:
                raise BadTrace(f"{path}: line {rows.line_num}: {error}") from None
    except csv.Error as error:
        raise BadTrace(f"{path}: line {rows.line_num}: {error}") from None


def _call(row: dict[str, str]) -> Call:
    if None in row.values() or None in row:
        raise ValueError("not as many fields as the first line names")
    hint = _number(row, "preset_memory_mb", 0.0)
    return Call(
        category=row["category"],
        input_bytes=_number(row, "input_size_bytes", 0.0),
        wall_s=_number(row, "wall_s"),
        cores=_number(row, "cores", 1.0),
        memory=_number(row, "memory_mb") * MB,
        disk=_number(row, "disk_mb", 0.0) * MB,
        hint=hint * MB if hint > 0 else None,
    )


def _number(row: dict[str, str], name: str, absent: float | None = None) -> float:
    text = row.get(name, "")
    if not text and absent is not None:
        return absent
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number") from None
    if not isfinite(value) or value < 0:
        raise ValueError(f"{name} is {text}, which nothing can take")
    return value


def used(calls: Iterable[Call]) -> float:
    """Byte-seconds that the calls truly need."""
    return sum(call.memory * call.wall_s for call in calls)

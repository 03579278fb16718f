"""Amounts: what was asked, what was allotted, what was used; and how people write them.

Bytes and seconds everywhere.  Pure, standard library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

# measured where only the standard library is; known here by the same name
from lfm.monitor.usage import Usage as Usage

MOST_CORES, MOST_BYTES, MOST_DEVICES = 1e12, 1 << 62, 1 << 16  # more is nobody's, and a mistake
MOST_SECONDS = 1e12

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)[bB]?\s*")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_DURATION = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?)d)?\s*(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)s?)?\s*"
)


def parse_size(text: str | int | float) -> int:
    """Bytes of ``"4GB"`` (10^9), ``"4GiB"`` (2^30), or a plain number.  ValueError for anything else."""
    if isinstance(text, bool) or (isinstance(text, int | float) and not 0 <= text < math.inf):
        raise ValueError(f"{text!r} is not a size; write bytes, or like '4GB' or '4GiB'")
    if isinstance(text, int | float):
        return int(text) if text <= MOST_BYTES else _too_much(text)
    found = _SIZE.fullmatch(text)
    if found is None or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is not a size; write bytes, or like '4GB' or '4GiB'")
    size = float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2]]
    return int(size) if size <= MOST_BYTES else _too_much(text)


def _too_much(text: str | int | float) -> NoReturn:
    raise ValueError(f"{str(text)[:40]} is more than there is anywhere")


def parse_duration(text: str | int | float) -> float:
    """Seconds of ``"1h30m"``, ``"90s"``, ``"2d"``, or a plain number.  ValueError for anything else."""
    if isinstance(text, bool) or (isinstance(text, int | float) and not 0 <= text < math.inf):
        raise ValueError(f"{text!r} is not a duration; write seconds, or like '1h30m'")
    if isinstance(text, int | float):
        return float(text) if text <= MOST_SECONDS else _too_much(text)
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is not a duration; write seconds, or like '1h30m'")
    seconds = sum(float(n or 0) * unit for n, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))
    return seconds if seconds <= MOST_SECONDS else _too_much(text)


def format_size(amount: float) -> str:
    """``"3.2 GB"``: decimal units, one decimal below 100."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(amount) < 999.5 or unit == "TB":
            return f"{amount:.0f} {unit}" if unit == "B" or abs(amount) >= 99.95 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


def format_duration(seconds: float) -> str:
    """``"350 ms"``, ``"4.2 s"``, ``"3m 20s"``, ``"2h 05m"``, ``"2d 07h"``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 48 else f"{hours // 24}d {hours % 24:02d}h"


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of a node: what it offers, or what one call is allotted.  ``wall_time`` None: unbounded."""

    cores: float = 1.0
    memory: int = 0
    disk: int = 0
    gpus: int = 0
    wall_time: float | None = None


MAKES_ROOM_BEFORE = 3  # the attempt from which on a call makes no room for older ones on a full node


@dataclass(frozen=True, slots=True)
class Expected:
    """What a user thinks that a call takes: it sizes the first calls of a category, and may be exceeded."""

    cores: float | None = None
    memory: int | None = None
    disk: int | None = None
    wall_time: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked for a call.  None: nobody asked, so it is learned.  What was asked is a limit."""

    cores: float | None = None
    memory: int | None = None
    disk: int | None = None
    gpus: int | None = None
    wall_time: float | None = None
    processes: int | None = None
    expect: Expected | None = None
    labels: tuple[tuple[str, str], ...] = ()  # that its worker must have; sorted
    strategy: str | None = None  # by which its automatic amounts are found; None: the run's

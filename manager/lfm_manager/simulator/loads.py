"""Loads that nobody recorded: four shapes of application, drawn from a seed.

They stand for many short uniform calls (events of a physics experiment), a mixture (screening of molecules),
long tails (reads of genomes), and few heavy calls (classifying images with a large model).  The figures are
ours; what is asked (the hint) is what a careful user would ask who has looked at a few calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log
from random import Random

from lfm_manager.simulator.trace import Call

MB, GB = 1e6, 1e9


@dataclass(frozen=True, slots=True)
class Kind:
    """One function of an application: its share of the calls, and how a call of it is drawn."""

    name: str
    share: float
    cores: float
    hint: float
    draw: Callable[[Random], tuple[float, float, float]]  # -> input bytes, seconds, bytes of memory


def _between(dice: Random, low: float, high: float) -> float:
    return dice.uniform(low, high)


def _long_tail(dice: Random, median: float, spread: float, most: float) -> float:
    return min(most, median * exp(dice.gauss(0, log(spread))))


def _events(dice: Random) -> tuple[float, float, float]:
    size = _between(dice, 80, 120) * MB
    return size, _between(dice, 40, 70), 90 * MB + 0.2 * size + _between(dice, 0, 15) * MB


def _merge(dice: Random) -> tuple[float, float, float]:
    return 20 * MB, _between(dice, 5, 15), _between(dice, 250, 400) * MB


def _fingerprint(dice: Random) -> tuple[float, float, float]:
    size = _long_tail(dice, 2 * MB, 1.6, 30 * MB)
    return size, 5 + size / MB * _between(dice, 2, 3), 180 * MB + 25 * size


def _dock(dice: Random) -> tuple[float, float, float]:
    return 1 * MB, _long_tail(dice, 60, 1.8, 900), _between(dice, 600, 900) * MB


def _infer(dice: Random) -> tuple[float, float, float]:
    size = dice.choice((50, 200)) * MB
    return size, _between(dice, 30, 50), 1.5 * GB + 8 * size + _between(dice, 0, 200) * MB


def _align(dice: Random) -> tuple[float, float, float]:
    size = _long_tail(dice, 300 * MB, 2.2, 8 * GB)
    return size, 30 + size / (4 * MB), 1.2 * GB + 3 * size * _between(dice, 0.8, 1.2)


def _call_variants(dice: Random) -> tuple[float, float, float]:
    size = _long_tail(dice, 100 * MB, 2.5, 3 * GB)
    return size, 60 + size / (2 * MB), 0.8 * GB + 6 * size * _between(dice, 0.9, 1.3)


def _report(dice: Random) -> tuple[float, float, float]:
    return 5 * MB, _between(dice, 10, 30), _between(dice, 150, 200) * MB


def _classify(dice: Random) -> tuple[float, float, float]:
    size = dice.choice((1, 1, 1, 4)) * GB
    return size, 120 + size / (20 * MB) * _between(dice, 0.8, 1.2), 4 * GB + 2 * size + _between(dice, 0, 0.5) * GB


def _train(dice: Random) -> tuple[float, float, float]:
    return 8 * GB, _between(dice, 600, 1200), _between(dice, 20, 26) * GB


LOADS: dict[str, tuple[Kind, ...]] = {
    "hep": (Kind("process", 0.95, 1, 1.5 * GB, _events), Kind("merge", 0.05, 1, 2 * GB, _merge)),
    "drug-screening": (
        Kind("fingerprint", 0.5, 1, 2 * GB, _fingerprint),
        Kind("dock", 0.3, 2, 4 * GB, _dock),
        Kind("infer", 0.2, 4, 8 * GB, _infer),
    ),
    "genomics": (
        Kind("align", 0.4, 4, 32 * GB, _align),
        Kind("variants", 0.4, 2, 24 * GB, _call_variants),
        Kind("report", 0.2, 1, 2 * GB, _report),
    ),
    "images": (Kind("classify", 0.9, 4, 16 * GB, _classify), Kind("train", 0.1, 8, 40 * GB, _train)),
}


def draw(name: str, calls: int, seed: int = 1) -> list[Call]:
    """So many calls of a load, in random order."""
    dice = Random(f"{name}/{seed}")
    kinds = LOADS[name]
    chosen = dice.choices(kinds, [kind.share for kind in kinds], k=calls)
    return [_call(kind, dice) for kind in chosen]


def _call(kind: Kind, dice: Random) -> Call:
    size, seconds, memory = kind.draw(dice)
    return Call(kind.name, size, seconds, kind.cores, memory, 0.0, kind.hint)

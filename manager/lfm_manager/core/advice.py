"""What to tell a user about the amounts of a category, in words that can be typed."""

from __future__ import annotations

from math import ceil, floor, log10

from lfm.protocol.resources import Request, format_size
from lfm_manager.core.categories import Category

MUCH = 5  # times the largest that was measured: that much asked is worth a word
RESULTS = 10  # ... after so many results
SMALL = 256 << 20  # bytes that nobody misses
HEADROOM = 1.25  # above the largest measured, for a limit that is final; ...
ROOM = 64 * 10**6  # ... and bytes at least, whatever it was: another input or a lazy import takes that, and none is short of it


def too_much(category: Category, asked: Request) -> str:
    """For people: that they ask, or expect, far more than calls take; empty if they do not."""
    if category.seen < RESULTS:
        return ""
    for resource, most in (("memory", category.most_memory), ("disk", category.most_disk)):
        limit: int | None = getattr(asked, resource)
        expected: int | None = getattr(asked.expect, resource) if asked.expect is not None else None
        said = limit if limit is not None else expected
        if said is None or not most or said < max(SMALL, MUCH * most):
            continue
        how = f"{resource}={_typed(said)}" if limit is not None else f"expect={{'{resource}': {_typed(said)}}}"
        return (
            f"{category.name}: {how} is {said / most:.0f} times what the largest of {category.seen} calls took"
            f" ({format_size(most)}); {_enough(resource, most)} would do, and where nothing is said it is learned"
        )
    return ""


def options_line(category: Category, cores: float) -> str:
    """``options(memory='1.3GB', cores=1)``: limits that every call so far would have kept; empty if nothing is known."""
    if not category.most_memory:
        return ""
    said = [_enough("memory", category.most_memory), f"cores={cores:g}"]
    if category.most_disk > SMALL:
        said.append(_enough("disk", category.most_disk))
    return f"options({', '.join(said)})"


def _enough(resource: str, most: int) -> str:
    return f"{resource}={_typed(_round_up(max(HEADROOM * most, most + ROOM)))}"


def _round_up(amount: float) -> int:
    """To two digits."""
    step: int = 10 ** max(0, floor(log10(max(1.0, amount))) - 1)
    return ceil(amount / step) * step


def _typed(amount: int) -> str:
    """As ``parse_size`` reads it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if amount >= size:
            return f"'{amount / size:.3g}{unit}'"
    return str(amount)

"""What a call needs on the node's disk before it can start: blobs, environments, overlays, each named by digest.

Also which of them go when the cache is too large.  Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from lfm.protocol.ids import Digest

Kind = Literal["blob", "environment", "overlay"]


class Item(NamedTuple):
    """One thing in the node's cache."""

    kind: Kind
    digest: Digest


def is_digest(text: str) -> bool:
    """Whether it can be a sha-256 in hexadecimal.  Digests come from outside and become names of files."""
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def evict(held: Mapping[Item, tuple[int, float]], in_use: Collection[Item], limit: int) -> list[Item]:
    """What must go so that the rest is within ``limit`` bytes: least recently used first, never one in use.

    ``held`` maps to (bytes, when last used).  Where what is in use exceeds the limit by itself, all else goes.
    """
    excess = sum(size for size, _ in held.values()) - limit
    gone: list[Item] = []
    for item, (size, _) in sorted(held.items(), key=lambda entry: (entry[1][1], entry[0])):
        if excess <= 0:
            break
        if item not in in_use and size > 0:
            gone.append(item)
            excess -= size
    return gone

"""What the person at the terminal sees of environments that are being made; nothing where nobody watches.

Lines, no bars: the script may have a bar of its own, and two on one terminal overwrite each other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from lfm.protocol.messages import EnvironmentProgress
from lfm.protocol.resources import format_size

EVERY = 10.0  # seconds between two lines about the same environment


class EnvironmentNews:
    """Says when the making of an environment begins, how far it is, when it is done, and how it gets to workers."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or _to_terminal
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def hear(self, news: EnvironmentProgress) -> None:
        now = time.monotonic()
        begun = self._begun.get(news.key)
        if news.stage in ("ready", "failed"):
            if begun is not None:
                del self._begun[news.key], self._said[news.key]
                self._say(f"environment with {news.name}: {news.stage} after {now - begun:.1f} s")
        elif news.stage in ("send", "unpack", "unpacked"):
            self._on_its_way(news, now)
        elif begun is None:
            self._begun[news.key] = self._said[news.key] = now
            self._say(f"environment with {news.name} is made, once; the next calls find it")
        elif now - self._said[news.key] >= EVERY:
            self._said[news.key] = now
            far = f" ({news.done:,} of {news.total:,})" if news.total else ""
            self._say(f"environment with {news.name}: {news.text or news.stage}{far}, {now - begun:.0f} s so far")


    def _on_its_way(self, news: EnvironmentProgress, now: float) -> None:
        """To workers: only what takes long is told of at all."""
        way = f"to workers: {news.key}"
        begun = self._begun.get(way)
        if news.stage == "unpacked":
            if begun is not None:
                del self._begun[way], self._said[way]
                self._say(f"environment with {news.name}: on its workers after {now - begun:.1f} s")
        elif begun is None or now - self._said[way] >= EVERY:
            self._begun.setdefault(way, now)
            self._said[way] = now
            far = f", {100 * news.done // news.total} % of {format_size(news.total)}" if news.total else ""
            self._say(f"environment with {news.name}: being {news.text}{far}")


def _to_terminal(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"lfm: {text}", file=sys.stderr, flush=True)

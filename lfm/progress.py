"""What the person at the terminal sees of environments that are made and on their way; nothing where nobody watches.

A bar while the script waits for lfm; where it does not, or the terminal knows no bars, a line now and then.  All
that stays is one line, when an environment is made.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lfm.protocol.ids import EnvironmentKey
from lfm.protocol.messages import EnvironmentProgress
from lfm.protocol.resources import format_size
from lfm.terminal import Terminal, terminal

FROM = 0.3  # seconds that an environment takes before anybody is told
FRAME = 0.2  # seconds between two pictures
EVERY = 10.0  # seconds between two lines about the same environment
LONGEST = 40  # columns of a bar
DOING = {
    "wait": "waiting for another build of it", "solve": "solving", "build": "building", "pack": "packing",
    "verify": "verifying", "upload": "sending to the manager", "send": "sending", "unpack": "unpacking",
}  # fmt: skip


@dataclass(slots=True)
class _Way:
    """An environment that is not there yet: with those who make it, or on its way to workers."""

    news: EnvironmentProgress
    begun: float
    said: float  # when anything was shown


class EnvironmentNews:
    """A session's.  ``hear`` all that is said, and ``look`` when ``deadline`` has come."""

    def __init__(self, screen: Terminal = terminal) -> None:
        self._screen = screen
        self._ways: dict[tuple[str, bool], _Way] = {}
        self._due = math.inf

    def hear(self, news: EnvironmentProgress) -> None:
        now = time.monotonic()
        leaves = news.stage in ("send", "unpack", "unpacked")
        if news.stage in ("ready", "failed", "unpacked"):
            self._over(self._ways.pop((news.key, leaves), None), news, now)
        elif (way := self._ways.get((news.key, leaves))) is not None:
            way.news = news
        else:
            self._ways[news.key, leaves] = _Way(news, now, now)
            self._due = min(self._due, now + FROM)

    def sent(self, key: EnvironmentKey, done: int) -> None:
        """So much of what was made here is with the manager."""
        way = self._ways.get((key, False))
        if way is not None and way.news.stage == "upload":
            way.news = way.news.but(done=max(done, way.news.done))

    def deadline(self) -> float:
        return self._due

    def look(self, now: float) -> None:
        """Show how far they are."""
        shown = [way for way in self._ways.values() if now >= way.begun + FROM]
        if shown and self._screen.draw(picture(shown[0].news, now - shown[0].begun, len(shown) - 1, self._screen)):
            for way in shown:
                way.said = now
        else:
            for way in shown:
                self._line(way, now)
        self._due = now + FRAME if self._ways else math.inf

    def _over(self, way: _Way | None, news: EnvironmentProgress, now: float) -> None:
        self._screen.clear()
        if way is not None and news.stage != "unpacked":
            self._screen.say(f"lfm: environment with {news.name}: {news.stage} after {now - way.begun:.1f} s")

    def _line(self, way: _Way, now: float) -> None:
        """The script does something else: a word now and then."""
        if now - way.said >= EVERY:
            way.said = now
            self._screen.say(f"lfm: environment with {picture(way.news, now - way.begun, 0, None)}")


def picture(news: EnvironmentProgress, seconds: float, others: int, screen: Terminal | None) -> str:
    """One line: with a bar as long as fits on the screen, if there is one."""
    name = news.name + (f" (and {others} more)" if others else "")
    known = news.total > 1 and (news.done > 0 or news.stage != "upload")  # which only the client that sends it can tell
    far = min(1.0, news.done / news.total) if known and news.total else 0.0
    in_bytes = news.stage in ("send", "unpack", "upload")
    total = f" of {format_size(news.total)}" if in_bytes and news.total else ""
    left = f"{name}: {_doing(news)}"
    right = f"{far:4.0%}{total}, {seconds:.0f} s" if known else f"{seconds:.0f} s"
    if screen is None:
        return f"{left}, {right.strip()}"
    left = f"lfm: {left} "
    room = min(LONGEST, screen.width - len(left) - len(right) - 1)
    bar = _bar(far, room, screen.plain) + " " if known and room >= 5 else ""
    return f"{left}{bar}{right}"[: screen.width]


def _doing(news: EnvironmentProgress) -> str:
    doing = DOING.get(news.stage, news.stage)
    if news.stage in ("send", "unpack"):  # "sent to 2 workers"
        return f"{doing}{news.text[len('unpacked') if news.stage == 'unpack' else len('sent') :]}"
    return f"{doing} {news.text}" if news.stage in ("build", "solve") and news.text else doing


def _bar(far: float, width: int, plain: bool) -> str:
    full = int(far * width)
    return ("#" if plain else "━") * full + ("-" if plain else "╌") * (width - full)

"""What a build says while it runs: one JSON line per step, for the manager and for a person's progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TextIO

Report = Callable[[str, int, int, str], None]  # stage, done, total (0: unknown), text

INTERVAL = 0.1  # seconds between two lines of one stage at least


def silent(stage: str, done: int, total: int, text: str = "") -> None:
    """Report to nobody."""


class Lines:
    """Writes ``{"stage", "done", "total", "text"}`` lines; drops those that come too fast, never a stage's last."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._stage = ""
        self._due = 0.0

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        now = time.monotonic()
        if stage == self._stage and now < self._due and done != total:
            return
        self._stage, self._due = stage, now + INTERVAL
        line = json.dumps({"stage": stage, "done": done, "total": total, "text": text})
        try:
            print(line, file=self._out, flush=True)
        except (BrokenPipeError, ValueError):
            pass  # nobody listens any more: the build goes on, its result counts

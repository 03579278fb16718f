"""A bar on the terminal while an environment is built for the first time; nothing where nobody watches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lfm.protocol.messages import EnvironmentProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OVER = ("ready", "failed")


class EnvironmentBars:
    """One bar per environment that is being made; gone when it is there."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def show(self, news: EnvironmentProgress) -> None:
        if news.stage in OVER:
            if self._progress is not None and (bar := self._bars.pop(news.key, None)) is not None:
                self._progress.remove_task(bar)
                if not self._bars:
                    self.close()
            return
        if self._progress is None:
            if not sys.stderr.isatty():
                return
            self._progress = _open()
        text = f"environment for {news.name}: {news.text or news.stage}"
        total = news.total or None
        if news.key not in self._bars:
            self._bars[news.key] = self._progress.add_task(text, total=total)
        self._progress.update(self._bars[news.key], description=text, completed=news.done, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._bars.clear()


def _open() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    made = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )
    made.start()
    return made

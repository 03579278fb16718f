"""What both examples show while they run and at the end: a bar per function, then a table per function.

Nothing here is needed to use lfm: it reads the attributes that every lfm future has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import lfm


class Stages:
    """Submits calls to an executor, shows how far each function is, and remembers the futures for the table."""

    def __init__(self, executor: lfm.Executor, console: Console) -> None:
        self.executor = executor
        self.console = console
        self.futures: dict[str, list[lfm.Future]] = {}
        self._bars: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description:<16}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def submit(self, function: Callable[..., Any], /, *args: Any) -> lfm.Future:
        """As the executor's own, and one more on this function's bar."""
        name = function.__name__
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=0)
            self.futures[name] = []
        bar = self._bars[name]
        future = self.executor.submit(function, *args)
        self.futures[name].append(future)
        self._progress.update(bar, total=len(self.futures[name]))
        future.add_done_callback(lambda _: self._progress.advance(bar))
        return future

    def each(self, function: Callable[..., Any], arguments: Iterable[Sequence[Any]]) -> list[Any]:
        """Call the function once for each tuple of arguments; the values in that order."""
        futures = [self.submit(function, *args) for args in arguments]
        return [future.result() for future in futures]

    def show_usage(self) -> None:
        """What every function needed and used, from its futures."""
        headings = ("calls", "environment", "measured", "allotted", "retries", "wall")
        rows = [(name, *usage(futures)) for name, futures in self.futures.items()]
        note = (
            "environment: installed size of what the function needs, of all that is installed here.  measured: "
            "memory, median / largest call.  allotted: memory, last / largest call.  wall: median call."
        )
        show(self.console, "What each function used", columns("function", *headings), rows, note)


def usage(futures: Sequence[lfm.Future]) -> tuple[str, ...]:
    """One row of the table: calls, environment, memory measured and allotted, retries, wall time."""
    used = [future.usage for future in futures if future.usage]
    measured = [u.memory for u in used]
    allotted = [future.allocation.memory for future in futures if future.allocation]
    return (
        str(len(futures)),
        environment_size(futures[0].environment),
        f"{size(median(measured))} / {size(max(measured))}",
        f"{size(allotted[-1])} / {size(max(allotted))}",
        str(sum(len(future.attempts) - 1 for future in futures)),
        seconds(median(u.wall_s for u in used)),
    )


def columns(first: str, *headings: str) -> Table:
    """A table without frames that fits a terminal of 80 columns; the first column is text, the others numbers."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show(console: Console, title: str, table: Table, rows: Iterable[Sequence[Any]], note: str) -> None:
    for row in rows:
        table.add_row(*row)
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table)
    console.print(note, style="dim")


def size(amount: float) -> str:
    return f"{amount / 1e9:.1f}G" if amount >= 1e9 else f"{amount / 1e6:.0f}M"


def seconds(amount: float) -> str:
    return f"{amount:.1f} s" if amount >= 1 else f"{amount * 1000:.0f} ms"


@cache
def installed_bytes(name: str) -> int:
    """Bytes on disk of one installed distribution, by its own list of files."""
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        return 0
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file())


@cache
def environment_size(identifier: str) -> str:
    """``160M of 1.1G``: one function's environment against all that is installed here."""
    command = [sys.executable, "-m", "lfm", "env", "show", identifier, "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:  # packed on another machine
        return "-"
    names = {d["name"] for d in json.loads(shown.stdout)["distributions"]}
    everything = {d.name for d in metadata.distributions()}
    mine, whole = (sum(map(installed_bytes, group)) for group in (names & everything, everything))
    return f"{size(mine)} of {size(whole)}"

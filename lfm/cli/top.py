"""``lfm top``: the screen of ``lfm status``, live."""

from __future__ import annotations

import time

import click

from lfm.cli.common import Link, console, run_option


@click.command()
@run_option
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS", help="Between two looks.")
def top(run: str | None, every: float) -> None:
    """Workers, calls by state, and per function what is allotted and measured; live.  Ctrl-C ends it.

    Costs the manager one question a look; the calls do not notice.
    """
    from lfm.cli.screen import screen

    with Link(run) as link:
        out = console()
        if not out.is_terminal:
            out.print(screen(link.ask("status")))
            return
        from rich.live import Live

        try:
            with Live(screen(link.ask("status"), out.height), console=out, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(every)
                    live.update(screen(link.ask("status"), out.height), refresh=True)
        except KeyboardInterrupt:
            pass

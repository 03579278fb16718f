"""``lfm status`` and ``lfm categories``: how a run stands, once."""

from __future__ import annotations

import click

from lfm.cli.common import ask, console, json_option, print_json, run_option


@click.command()
@run_option
@json_option
def status(run: str | None, as_json: bool) -> None:
    """One screen: manager, workers, calls by state, categories, alerts.

    \b
    lfm status                               your newest run
    lfm status --run night-7 --json | jq .calls.running
    """
    answer = ask(run, "status")
    if as_json:
        print_json(answer)
        return
    from lfm.cli.screen import screen

    console().print(screen(answer))


@click.command()
@run_option
@json_option
def categories(run: str | None, as_json: bool) -> None:
    """Per function: calls, memory allotted and measured, time, retries, and what the next call would get.

    ALLOTTED p50 is the median allocation, MEMORY what calls really took (median, 95th percentile, largest),
    USED the share of the allotted memory x time that was used, WASTE the rest.
    """
    answer = ask(run, "categories")
    if as_json:
        print_json(answer)
        return
    from lfm.cli.screen import category_table

    if not answer["categories"]:
        click.echo("no calls yet")
        return
    console().print(category_table(answer["categories"], waste=True))
    if lines := [f"  {c['category']}: {c['options']}" for c in answer["categories"] if c.get("options")]:
        click.echo("\nlimits that every call so far would have kept:")
        click.echo("\n".join(lines))

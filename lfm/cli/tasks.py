"""``lfm tasks``, ``explain``, ``logs`` and ``cancel``: single calls, seen from outside the session that made them."""

from __future__ import annotations

import time
from typing import Any

import click

from lfm.cli.common import Link, ask, duration, json_option, print_json, print_table, run_option, size

OVER = ("done", "failed")


@click.command()
@click.argument("selection", metavar="[SEL]", required=False)
@click.option("--state", type=click.Choice(["waiting", "ready", "placed", "running", "collecting", *OVER]), help="Only those.")
@click.option("--category", metavar="C", help="Only calls of this category.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="So many at most.")
@run_option
@json_option
def tasks(selection: str | None, state: str | None, category: str | None, limit: int, run: str | None, as_json: bool) -> None:
    """List the calls that the manager holds: all that are not over, and results not yet fetched.

    SEL is "all", a category, a state, or ids separated by commas; the beginning or end of an id will do.

    \b
    lfm tasks --state running
    lfm tasks fit --limit 1000 --json
    """
    answer = ask(run, "tasks", selection=selection, state=state, category=category, limit=limit)
    if as_json:
        print_json(answer)
        return
    if not answer["tasks"]:
        click.echo("no such calls" if selection or state or category else "no calls")
        return
    print_table(["CALL", "STATE", "FUNCTION", ">TRY", "WORKER", ">ALLOTTED", ">USED", ">TIME", "ENDING"], map(_row, answer["tasks"]))
    if answer["left_out"]:
        click.echo(f"... and {answer['left_out']:,} more; see --limit")


def _row(task: dict[str, Any]) -> tuple[object, ...]:
    usage, given = task["usage"] or {}, task["allocation"] or {}
    return (
        task["task"], task["state"], task["category"], task["attempt"] or "-", task["worker"] or "-",
        size(given.get("memory")), size(usage.get("memory")), duration(usage.get("wall_s", task["running_s"])),
        task["outcome"] or "",
    )  # fmt: skip


@click.command()
@click.argument("task")
@run_option
@json_option
def explain(task: str, run: str | None, as_json: bool) -> None:
    """Why TASK waits, where it runs, or how it ended.

    TASK is an id as ``lfm tasks`` and ``future.id`` show it; the beginning or end of one will do.
    """
    answer = ask(run, "explain", task=task)
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["text"])


@click.command()
@click.argument("task")
@click.option("-f", "--follow", is_flag=True, help="Wait until the call is over.")
@click.option("--stderr", is_flag=True, help="What it wrote to stderr, instead.")
@run_option
@json_option
def logs(task: str, follow: bool, stderr: bool, run: str | None, as_json: bool) -> None:
    """What TASK printed: known once it is over, until its client has fetched the result.

    A client has both as future.stdout and future.stderr, for good.
    """
    with Link(run) as link:
        answer = link.ask("logs", task=task)
        while follow and answer["state"] not in OVER:
            time.sleep(0.5)
            answer = link.ask("logs", task=answer["task"])
    if as_json:
        print_json(answer)
    elif answer["state"] not in OVER:
        click.echo(f"the call is {answer['state']}; what it prints is shown at its end: lfm logs -f", err=True)
    else:
        click.echo(answer["stderr" if stderr else "stdout"], nl=False)


@click.command()
@click.argument("selection", metavar="SEL")
@run_option
@json_option
def cancel(selection: str, run: str | None, as_json: bool) -> None:
    """Take calls back, and kill those that run.  Their futures are cancelled.

    SEL is "all", a category, a state, or ids separated by commas.

    \b
    lfm cancel all
    lfm cancel fit
    lfm cancel 3f2a-17,3f2a-18
    """
    answer = ask(run, "cancel", role="client", selection=selection)
    if as_json:
        print_json(answer)
        return
    count = len(answer["tasks"])
    click.echo(f"{count:,} call{'s' * (count != 1)} cancelled")

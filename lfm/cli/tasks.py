"""``lfm tasks``, ``explain``, ``logs``, ``cancel``, ``retry``: calls, seen from outside the session that made them."""

from __future__ import annotations

import time
from typing import Any

import click

from lfm.cli.common import Link, ask, duration, json_option, print_json, print_table, run_option, size

OVER = ("done", "failed")
STATES = ("waiting", "ready", "placed", "running", "collecting", *OVER)
LOOK_EVERY = 0.3  # seconds

state_option = click.option("--state", type=click.Choice(STATES), help="Only those.")
category_option = click.option("--category", metavar="C", help="Only calls of this category.")


@click.command()
@click.argument("selection", metavar="[SEL]", required=False)
@state_option
@category_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="So many at most.")
@run_option
@json_option
def tasks(selection: str | None, state: str | None, category: str | None, limit: int, run: str | None, as_json: bool) -> None:
    """List the calls that the manager holds: all that are not over, and results not yet fetched.

    With --state done or failed, or by id, also the last 10,000 that it remembers.

    SEL is "all", a category, a state, a session, or a list of ids, numbers and ranges of numbers; the beginning or
    end of an id will do.

    \b
    lfm tasks --state running
    lfm tasks fit --state failed --json
    lfm tasks 17-25
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
@click.option("-f", "--follow", is_flag=True, help="Go on until the call is over.")
@click.option("--stderr", is_flag=True, help="What it wrote to stderr, instead.")
@run_option
@json_option
def logs(task: str, follow: bool, stderr: bool, run: str | None, as_json: bool) -> None:
    """What TASK has printed so far, while it runs; all of it, once it is over.

    Where that is much, its head and its tail.  A client has both as future.stdout and future.stderr, for good.

    \b
    lfm logs 17 -f
    lfm logs 3f2a91c0d7e4-17 --stderr
    """
    with Link(run) as link:
        answer = link.ask("logs", task=task)
        if as_json:
            while follow and answer["state"] not in OVER:
                time.sleep(LOOK_EVERY)
                answer = link.ask("logs", task=answer["task"])
            print_json(answer)
            return
        stream = "stderr" if stderr else "stdout"
        click.echo(answer[stream], nl=False)
        if not follow and answer["state"] not in (*OVER, "running"):
            click.echo(f"the call is {answer['state']} and has printed nothing yet; to wait for it: lfm logs -f", err=True)
        try:
            while follow and answer["state"] not in OVER:
                time.sleep(LOOK_EVERY)
                answer = _more(link, answer, stream)
        except KeyboardInterrupt:
            pass


def _more(link: Link, seen: dict[str, Any], stream: str) -> dict[str, Any]:
    """Print what has come since."""
    since = {f"{stream}_from": seen[f"{stream}_next"]}
    answer = link.ask("logs", task=seen["task"], attempt=seen["attempt"], **since)
    if answer["attempt"] != seen["attempt"] and seen["attempt"]:
        click.echo(f"lfm: attempt {answer['attempt']} begins", err=True)
    click.echo(answer[stream], nl=False)
    return answer


@click.command()
@click.argument("selection", metavar="[SEL]", required=False)
@state_option
@category_option
@run_option
@json_option
def cancel(selection: str | None, state: str | None, category: str | None, run: str | None, as_json: bool) -> None:
    """Take calls back, and kill those that run.

    SEL is "all", a category, a state, a session, or a list of ids, numbers and ranges of numbers.

    \b
    lfm cancel all
    lfm cancel --category fit --state waiting
    lfm cancel 17-25,31
    lfm cancel thesis:17-25
    """
    answer = _chosen(run, "cancel", selection, state, category)
    if as_json:
        print_json(answer)
        return
    over = f"; {answer['over']:,} {'were' if answer['over'] != 1 else 'was'} over already" if answer["over"] else ""
    click.echo(f"{_calls(answer['count'])} cancelled{over}")


@click.command()
@click.argument("selection", metavar="[SEL]", required=False)
@state_option
@category_option
@run_option
@json_option
def retry(selection: str | None, state: str | None, category: str | None, run: str | None, as_json: bool) -> None:
    """Run failed calls again, while they are remembered and their client is there or may come back.

    Each runs under a new id, its own with .1, .2 behind it; ex.futures() has its future.  SEL is as for cancel;
    calls that were cancelled run again only if they are named.

    \b
    lfm retry all
    lfm retry --category fit
    lfm retry 17,19
    """
    answer = _chosen(run, "retry", selection, state, category)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{_calls(answer['count'])} to run again")
    for why, count in answer["left"].items():
        click.echo(f"{_calls(count)} not: {why}", err=True)


def _chosen(run: str | None, what: str, selection: str | None, state: str | None, category: str | None) -> dict[str, Any]:
    if not (selection or state or category):
        raise click.UsageError(f"Which calls?  {what} all, or a category, a state, ids; see: lfm {what} --help")
    return ask(run, what, role="client", selection=selection, state=state, category=category)


def _calls(count: int) -> str:
    return f"{count:,} call{'s' * (count != 1)}"

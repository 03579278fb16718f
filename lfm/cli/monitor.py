"""``lfm monitor -- COMMAND``: one command under a monitor, with no manager; the same code as for calls."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfm.cli.common import USAGE, fail, json_option

if TYPE_CHECKING:
    from lfm.monitor.wire import Limits
    from lfm.protocol.outcomes import Outcome
    from lfm.protocol.resources import Usage

LIMIT_CODE = 152  # what a shell shows for SIGXCPU: the command was ended for a limit


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--memory", metavar="SIZE", help="End it when its processes use more memory, e.g. 4GB.")
@click.option("--wall-time", metavar="DURATION", help="End it after this time, e.g. 1h30m.")
@click.option("--disk", metavar="SIZE", help="Give it a TMPDIR of its own, removed afterwards; end it when that holds more.")
@click.option("--processes", metavar="N", type=click.IntRange(min=1), help="End it when it has more processes.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def monitor(
    memory: str | None,
    wall_time: str | None,
    disk: str | None,
    processes: int | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with its whole process tree measured and bounded.

    The exit code is that of COMMAND; 128 + N if signal N ended it; 152 if a limit did.
    """
    outcome, usage, status = run(command, _limits(memory, wall_time, disk, processes))
    if as_json:
        click.echo(json.dumps(_facts(outcome, usage, status)))
    else:
        _print(outcome, usage)
    sys.exit(_code(outcome))


def _limits(memory: str | None, wall_time: str | None, disk: str | None, processes: int | None) -> Limits:
    from lfm.alone import has_gpus
    from lfm.monitor.wire import Limits
    from lfm.protocol.resources import parse_duration, parse_size

    try:
        return Limits(
            memory=parse_size(memory) if memory else 0,
            wall_time=parse_duration(wall_time) if wall_time else 0.0,
            disk=parse_size(disk) if disk else 0,
            processes=processes or 0,
            gpus=has_gpus(),
        )
    except ValueError as error:
        fail(str(error), code=USAGE)


def run(command: tuple[str, ...], limits: Limits) -> tuple[Outcome, Usage | None, int]:
    """Run a command in the current directory, which is its user's: it is not a sandbox, and nothing is removed.

    What it adds there cannot be told from what others add.  So a limit on disk is one on its temporary files.
    """
    import shutil
    import tempfile
    from dataclasses import replace

    from lfm.alone import wait_over
    from lfm.ending import outcome_of, usage_of
    from lfm.monitor import host, sandbox, wire
    from lfm.monitor.runtime import install_runtime
    from lfm.monitor.watch import disk_usage

    folder, environ = tempfile.mkdtemp(prefix="lfm-monitor-"), dict(os.environb)
    scratch = sandbox.make(f"{folder}/scratch") if limits.disk else None
    if scratch is not None:
        environ |= dict.fromkeys((b"TMPDIR", b"TMP", b"TEMP"), os.fsencode(scratch.path))
    running = host.Host(
        sys.executable, install_runtime(folder), session=False, clone=False, environ=dict(os.environ)
    )
    for number in (signal.SIGINT, signal.SIGQUIT):  # the terminal sends them to the command too
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: running.kill(1))
    try:
        watched = scratch.path if scratch is not None else ""
        work = wire.Work(1, "", b"", "", watched, directory=str(Path.cwd()), command=command, environ=environ)
        running.start(work, limits, fds=(0, 1, 2))
        over = wait_over(running)
        usage = usage_of(over)
        if usage is not None and scratch is not None:
            usage = replace(usage, disk=max(usage.disk, disk_usage(scratch.path)))
    finally:
        running.close()
        if scratch is not None:
            sandbox.remove(scratch)
        shutil.rmtree(folder, ignore_errors=True)  # made by mkdtemp above
    return outcome_of(over), usage, over.report.status if over.report else 0


def _facts(outcome: Outcome, usage: Usage | None, status: int) -> dict[str, Any]:
    from lfm.protocol.outcomes import Crashed, Exhausted

    crash = outcome if isinstance(outcome, Crashed) else None
    limit = None
    if isinstance(outcome, Exhausted):
        limit = {
            "resource": outcome.resource,
            "limit": outcome.limit,
            "measured": outcome.measured,
            "at_s": outcome.at_s,
        }
    return {
        "schema": "lfm.monitor/1",
        "exit_code": crash.exit_code if crash else None,
        "signal": crash.signal if crash else os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "limit": limit,
        "usage": asdict(usage) if usage else None,
    }


def _print(outcome: Outcome, usage: Usage | None) -> None:
    from lfm.alone import amount
    from lfm.protocol.outcomes import Crashed, Exhausted, Lost
    from lfm.protocol.resources import format_duration, format_size

    if isinstance(outcome, Exhausted):
        click.echo(
            f"lfm monitor: ended for its {outcome.resource.replace('_', ' ')}: {amount(outcome.resource, outcome.measured)}, "
            f"limit {amount(outcome.resource, outcome.limit)}, {format_duration(outcome.at_s)} after its start",
            err=True,
        )
    elif isinstance(outcome, Crashed) and outcome.signal:
        click.echo(f"lfm monitor: ended by {signal.Signals(outcome.signal).name}", err=True)
    elif isinstance(outcome, Lost):
        click.echo(f"lfm monitor: {outcome.reason}", err=True)
    if usage:
        exact = "" if usage.memory_low == usage.memory else f" (at least {format_size(usage.memory_low)})"
        click.echo(
            f"lfm monitor: wall {format_duration(usage.wall_s)}, cpu {format_duration(usage.cpu_s)}, "
            f"cores {usage.cores:.2f} (peak {usage.cores_peak:.2f}), memory {format_size(usage.memory)}{exact}, "
            f"{'' if not usage.disk else f'disk {format_size(usage.disk)}, '}read {format_size(usage.read)}, written {format_size(usage.written)}, "
            f"processes {usage.processes}, threads {usage.threads}"
            + (f", GPU memory {format_size(usage.gpu_memory)}" if usage.gpu_memory else ""),
            err=True,
        )


def _code(outcome: Outcome) -> int:
    from lfm.protocol.outcomes import Crashed, Exhausted

    if isinstance(outcome, Exhausted):
        return LIMIT_CODE
    if isinstance(outcome, Crashed):
        return 128 + outcome.signal if outcome.signal else outcome.exit_code or 0
    return 1

"""``lfm worker``: start one here; list, drain and stop those of a run; see what one would offer."""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfm.cli.common import (
    FAILED,
    NO_MANAGER,
    ask,
    duration,
    fail,
    json_option,
    print_json,
    print_table,
    run_option,
    size,
)
from lfm.protocol.resources import MOST_DEVICES, format_duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from lfm_worker.shell.detect import Allotment, Bound


class _Amount(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A size or a duration as people write it."""

    def __init__(self, name: str, parse: Callable[[Any], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


FOUND = ("machine", "libc", "python", "version", "system", "kernel", "batch", "job", "node")  # labels that nobody gave
SIZE, DURATION = _Amount("size", parse_size), _Amount("duration", parse_duration)


def _directory(chosen: Path | None) -> Path | None:
    return None if chosen is None else chosen.expanduser().absolute()


def _labels(ctx: click.Context, param: click.Parameter, said: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [(name.strip(), value.strip()) for name, _, value in (one.partition("=") for one in said)]
    if bad := [one for one, pair in zip(said, pairs, strict=True) if not all(pair)]:
        raise click.BadParameter(f"{bad[0]!r} is not like site=north")
    return pairs


@click.group()
def worker() -> None:
    """Start, list, drain and stop workers."""


@worker.command()
@run_option
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run directory; the same as --run DIR.")
@click.option("--connect", type=click.Path(path_type=Path), metavar="FILE", help="A worker's connection file; the same as --run FILE.")
@click.option("--cores", type=click.IntRange(1, 1_000_000), help="Cores to offer.  [default: what is ours here]")
@click.option("--memory", type=SIZE, help="Memory to offer.  [default: what is ours here, less a margin for the worker]")
@click.option("--disk", type=SIZE, help="Disk to offer.  [default: nine tenths of what is free]")
@click.option("--gpus", type=click.IntRange(0, MOST_DEVICES), help="GPUs to offer.  [default: all that are ours here]")
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="Where to keep environments and sandboxes; a local disk.  [default: LFM_SCRATCH, the job's scratch, TMPDIR, /var/tmp]")
@click.option("--time-limit", default="auto", show_default=True, metavar="D|auto", help="Leave before this time is over; auto: what the batch system says.")
@click.option("--idle-timeout", type=DURATION, help="Leave after so long without a call.")
@click.option("--on-manager-lost", type=click.Choice(["finish", "stop"]), default="finish", show_default=True, help="What to do when the manager does not answer: go on with running calls and wait for it, or stop at once.")
@click.option("--manager-timeout", type=DURATION, default="5m", show_default=True, help="How long to wait for a lost manager, without running calls.")
@click.option("--connect-timeout", type=DURATION, default="30s", show_default=True, help="How long to look for the manager at the start.")
@click.option("--grace", type=DURATION, default="20s", show_default=True, help="After SIGTERM, how long running calls may go on.")
@click.option("--cache-size", type=SIZE, help="How large the node's cache may grow.  [default: half of the disk]")
@click.option("--peers/--no-peers", default=True, help="Let large files go from worker to worker of the run; without, all come from the manager.")
@click.option("--label", "labels", multiple=True, callback=_labels, metavar="K=V", help="What calls may ask for with options(labels={K: V}); may be repeated.")
@click.option("--name", help="What people see.  [default: the batch job, or host and process]")
@click.option("--pin/--no-pin", default=True, help="Give each call CPUs of its own, where a worker offers all that are ours and is the only one.")
@click.option("--stdin-eof", is_flag=True, hidden=True, help="Stop when stdin closes: for whoever starts us as a part of itself.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def start(run: str | None, run_dir: Path | None, connect: Path | None, **options: Any) -> None:
    """Offer this node's resources to a manager, until told to leave.

    SIGTERM and SIGUSR1: take no more, finish what runs, hand back the rest, leave.  SIGINT: stop now.
    """
    from lfm.errors import ConnectionFailed, LfmError, ProtocolError
    from lfm.run import ConnectionFile, locate

    level = logging.WARNING if options["quiet"] else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s lfm worker: %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        if run_dir is not None:  # of a manager that may just be starting, beside us
            path = run_dir.absolute() / "worker.json"
        else:
            path = locate(connect or run, "worker").absolute()
        _work(lambda: ConnectionFile.read(path), options, path, run_dir is not None)
    except ConnectionFailed as error:
        fail(str(error), code=NO_MANAGER)
    except ProtocolError as error:
        fail(f"the manager refuses this worker: {error}")
    except LfmError as error:
        fail(str(error), code=FAILED)


def _await_manager(path: Path, timeout: float, stdin_eof: bool) -> None:
    """Until a manager that is starting has published its address, it is too late for that, or nobody wants it."""
    end = time.monotonic() + timeout
    while not path.exists() and time.monotonic() < end:
        if stdin_eof and select.select([0], [], [], 0.0)[0]:
            break
        time.sleep(0.01)


def _work(file: Callable[[], Any], options: dict[str, Any], path: Path, awaited: bool) -> None:
    """``path`` is the connection file's; ``awaited``: it may not be there yet."""
    from lfm.monitor import cgroup
    from lfm_worker.shell import loop, offer
    from lfm_worker.shell.detect import detect as look
    from lfm_worker.shell.places import Cache

    log = logging.getLogger("lfm_worker")
    limit = options["time_limit"]
    try:
        time_left = None if limit == "auto" else parse_duration(limit)
    except ValueError as error:
        fail(str(error), "--time-limit takes a duration, or auto", 2)
    found = look(work_dir=_directory(options["work_dir"]))
    wanted = offer.Wanted(
        options["cores"], options["memory"], options["disk"], options["gpus"], time_left, options["idle_timeout"],
        options["cache_size"], options["pin"],
    )
    settings, warnings = offer.settings(found, wanted)
    for warning in warnings:
        log.warning("%s", warning)
    cache = Cache(cache_root(found, options["work_dir"]))
    settings = replace(settings, cpus=cache.claim_cpus(settings.cpus))
    name = options["name"] or loop.default_name(found.job.system, found.job.id)
    if awaited:
        _await_manager(path, options["connect_timeout"], options["stdin_eof"])
    connection = file()
    what = settings.offer
    log.info(
        "%s offers %g cores, %s of memory, %d GPUs%s to run %r; its files are in %s", name, what.cores,
        format_size(what.memory), what.gpus, "" if what.wall_time is None else f" for {format_duration(what.wall_time)}",
        connection.run, cache.root,
    )
    if not awaited and not (options["cores"] and options["memory"]) and (others := cache.neighbours()):
        log.warning(
            "on this node you have more workers (%s), and each offers all of it: divide it with --cores and --memory",
            ", ".join(others),
        )
    behaviour = loop.Options(
        connect_timeout=options["connect_timeout"], grace=options["grace"], on_manager_lost=options["on_manager_lost"],
        manager_lost_after=options["manager_timeout"], stdin_eof=options["stdin_eof"],
        peers=options["peers"], shelf=path.parent / "environments" if connection.host == socket.gethostname() else None,
    )
    undivide = cgroup.divide()  # before any interpreter is started, which finds it so
    try:
        reason = loop.Worker(file, settings, cache, name, offer.labels(found, dict(options["labels"])), behaviour).run()
    finally:
        undivide()
    log.info("%s has left: %s", name, reason)


def cache_root(found: Allotment, work_dir: Path | None) -> Path:
    """The node's cache: below scratch in a directory of ours, or the directory that was named."""
    return found.scratch if work_dir is not None else found.scratch / f"lfm-{os.getuid()}"


# ---------------------------------------------------------------- asking the manager


@worker.command("list")
@run_option
@json_option
def list_(run: str | None, as_json: bool) -> None:
    """The workers of a run: what they offer, what they do."""
    body = ask(run, "workers")
    if as_json:
        print_json(body)
        return
    workers = body.get("workers", [])
    if not workers:
        click.echo("no workers; start one with: lfm worker start")
        return
    print_table(
        ["worker", "host", "state", ">calls", ">cores", ">memory", ">gpus", ">time left", "batch job", "labels"],
        [_row(w) for w in workers],
    )


def _row(w: dict[str, Any]) -> list[object]:
    offer, labels = w.get("offer", {}), w.get("labels", {})
    return [
        w.get("name"), w.get("host"), w.get("state"), w.get("calls"), f"{offer.get('cores', 0):g}", size(offer.get("memory")),
        offer.get("gpus"), duration(offer.get("wall_time")), " ".join(filter(None, (labels.get("batch"), labels.get("job")))),
        " ".join(f"{name}={value}" for name, value in labels.items() if name not in FOUND),
    ]


@worker.command()
@click.argument("selection", metavar="SEL")
@run_option
def drain(selection: str, run: str | None) -> None:
    """Let workers finish what runs, take no more, and leave.  SEL: a name, or all."""
    body = ask(run, "drain", role="client", selection=selection)
    _report(body, selection, "draining")


@worker.command()
@click.argument("selection", metavar="SEL")
@run_option
def stop(selection: str, run: str | None) -> None:
    """Stop workers now; their calls go elsewhere.  SEL: a name, or all."""
    body = ask(run, "stop", role="client", selection=selection)
    _report(body, selection, "stopping")


def _report(body: dict[str, Any], selection: str, doing: str) -> None:
    names = body.get("workers", [])
    if not names:
        fail(f"no worker is named {selection!r}", "see: lfm worker list")
    click.echo(f"{doing}: {', '.join(str(name) for name in names)}")


# ---------------------------------------------------------------- looking at the node


@worker.command()
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="Where a worker would keep its files.")
@json_option
def detect(work_dir: Path | None, as_json: bool) -> None:
    """What a worker would offer here, and how each number was found."""
    from lfm_worker.shell import offer
    from lfm_worker.shell.detect import detect as look

    found = look(work_dir=_directory(work_dir))
    settings, _ = offer.settings(found, offer.Wanted())
    probed = _probe()
    if as_json:
        print_json(_as_json(found, settings, probed, work_dir))
        return
    what = settings.offer
    rows: list[list[object]] = [
        ["cores", f"{what.cores:g}", _how(found.cores, "{:g}")],
        ["memory", format_size(what.memory), _how(found.memory, format_size) + f"; {format_size(found.memory.value - what.memory)} kept for the worker"],
        ["disk", format_size(what.disk), _how(found.disk, format_size)],
        ["GPUs", ",".join(found.gpus) or "none", found.gpus_by],
        ["time left", duration(what.wall_time) if what.wall_time is not None else "unlimited", _how(found.time_left, format_duration) if found.time_left else "nobody says"],
        ["batch system", found.job.system or "none", found.job.id],
        ["cache", str(cache_root(found, work_dir)), found.scratch_by],
    ]
    rows += [["contained by" if i == 0 else "", key, str(value)] for i, (key, value) in enumerate(probed.items())]
    print_table(["", "offered", "how it was found"], rows)


def _how(bound: Bound, write: str | Callable[[float], str]) -> str:
    """All sources, the one that decides first."""
    text = write.format if isinstance(write, str) else write
    return "; ".join(f"{text(f.value)} {f.source}" for f in sorted(bound.findings, key=lambda f: f.value))


def _as_json(found: Allotment, settings: Any, probed: dict[str, Any], work_dir: Path | None) -> dict[str, Any]:
    def findings(bound: Bound | None) -> list[dict[str, Any]]:
        return [{"value": f.value, "source": f.source} for f in sorted(bound.findings, key=lambda f: f.value)] if bound else []

    what = settings.offer
    return {
        "schema": "lfm.detect/1",
        "offer": {"cores": what.cores, "memory": what.memory, "disk": what.disk, "gpus": what.gpus, "wall_time": what.wall_time},
        "gpu_devices": list(found.gpus), "cpus": list(found.cpus),
        "batch": {"system": found.job.system, "job": found.job.id},
        "cache": str(cache_root(found, work_dir)),
        "found": {
            "cores": findings(found.cores), "memory": findings(found.memory), "disk": findings(found.disk),
            "time_left": findings(found.time_left), "gpus": [{"value": len(found.gpus), "source": found.gpus_by}],
            "scratch": [{"value": str(found.scratch), "source": found.scratch_by}],
        },
        "contain": probed,
    }


def _probe() -> dict[str, Any]:
    """What the monitor could use to contain a call here."""
    from lfm.monitor.contain import probe

    return dict(probe())

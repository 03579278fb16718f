"""``lfm manager``: start one, stop it, see where it is, wait for its calls."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from lfm.cli.common import (
    FAILED,
    USAGE,
    ask,
    duration,
    fail,
    json_option,
    print_json,
    print_table,
    run_option,
    size,
)
from lfm.errors import ConnectionFailed, LfmError
from lfm.options import STRATEGIES
from lfm.protocol.resources import parse_duration
from lfm.run import ConnectionFile, RunDirectory, locate, runs_root, write_private

LEAST_LEASE = 2.0  # seconds
START_TIMEOUT = 30.0  # seconds until a manager in the background must have published its address


@click.group()
def manager() -> None:
    """Start, stop and describe a manager."""


@manager.command()
@click.option("--name", help="The run's name: its directory is ~/.lfm/runs/NAME.  [default: default]")
@click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), help="The run directory itself.")
@click.option("--host", metavar="IP", help="Listen on this address alone.  [default: all]")
@click.option("--interface", metavar="IF", help="Listen on this network interface alone.")
@click.option("--advertise", metavar="ADDR", multiple=True, help="Name this address to others instead of those found; may be repeated, may have a :port.")
@click.option("--port", "ports", metavar="P|A-B", default="0", help="Port, or a range to take the first free one of.  [default: any; after a restart the same]")
@click.option("--strategy", "strategies", multiple=True, metavar="S|CATEGORY=S", help=f"How calls are sized, all or those of a category; may be repeated: {', '.join(STRATEGIES)}.  [default: auto]")
@click.option("--idle-timeout", metavar="D", help="End after so long without clients and calls.")
@click.option("--lease", metavar="D", default="60s", show_default=True, help="A worker or client that is silent for so long is lost; its calls run elsewhere.")
@click.option("--background", is_flag=True, help="Return as soon as it can be reached.")
@click.option("--ephemeral", is_flag=True, hidden=True, help="Keep nothing: remove the run directory at the end.")
@click.option("--stdin-eof", is_flag=True, hidden=True, help="End when stdin closes: for whoever starts us as a part of itself.")
def start(background: bool, **options: Any) -> None:
    """Start a manager; it runs until told to stop (Ctrl-C, SIGTERM, lfm manager stop).

    On a run directory that was used before, it takes up its calls, results and sizes.
    """
    os.umask(0o077)  # arguments and results lie in the run directory
    directory = _directory(options["name"], options["run_dir"])
    if background:
        _in_background(directory)
    else:
        _run(directory, options)


def _directory(name: str | None, run_dir: Path | None) -> Path:
    if name is not None and run_dir is not None:
        fail("--name and --run-dir both say where the run is; give one", code=USAGE)
    if run_dir is not None:
        return run_dir.expanduser().absolute()
    name = name or "default"
    if "/" in name or name in ("", ".", ".."):
        fail(f"{name!r} cannot be a run's name", "for a directory, use --run-dir", USAGE)
    return runs_root() / name


def _run(directory: Path, options: dict[str, Any]) -> None:
    from lfm_manager.shell.loop import Manager, remove

    try:
        run = RunDirectory.create(directory, directory.name)
        lock = _lock(run)
    except OSError as error:
        fail(f"cannot use the run directory {directory}: {error.strerror or error}")
    except ConnectionFailed as error:
        fail(str(error))
    try:
        _log_to(run, options["ephemeral"])
        made = Manager(run, _settings(run, options))
        try:
            reason = made.serve(lambda: _greet(run, made.addresses, options["ephemeral"]))
        finally:
            made.close()
        logging.getLogger("lfm_manager").info("ended: %s", reason)
    except (LfmError, OSError, ValueError) as error:
        fail(str(error), code=FAILED)
    finally:
        os.close(lock)
        if options["ephemeral"]:
            remove(run.path)


def _lock(run: RunDirectory) -> int:
    """One manager per run directory.  ConnectionFailed names the other."""
    descriptor = os.open(run.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise ConnectionFailed(f"run {run.name!r} already has a manager: {who}; see: lfm manager info --run {run.path}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _settings(run: RunDirectory, options: dict[str, Any]) -> Any:
    from lfm_manager.core.policy import Policy
    from lfm_manager.shell import addresses
    from lfm_manager.shell.loop import Settings

    if options["host"] and options["interface"]:
        raise ValueError("--host and --interface both say where to listen; give one")
    ephemeral = options["ephemeral"]
    if options["interface"]:
        interface = addresses.of_interface(options["interface"])
    else:
        interface = options["host"] or (addresses.LOOPBACK if ephemeral else addresses.ANY)
    idle, lease = options["idle_timeout"], _lease(options["lease"])
    return Settings(
        interface, _ports(options["ports"], run), options["advertise"], *_strategies(options["strategies"]), ephemeral,
        options["stdin_eof"], _learns(ephemeral), None if idle is None else parse_duration(idle),
        Policy(epoch=time.time() - time.monotonic(), recovery=lease), lease,
    )


def _lease(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < LEAST_LEASE:
        raise ValueError(f"--lease {text} is too short: a network may be silent for {LEAST_LEASE:g} s and nobody lost")
    return seconds


def _strategies(said: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The run's, and those of some categories."""
    own, chosen = "auto", {}
    for one in said:
        category, _, name = one.rpartition("=")
        if name not in STRATEGIES:
            raise ValueError(f"--strategy {one}: there are {', '.join(STRATEGIES)}")
        if category:
            chosen[category] = name
        else:
            own = name
    return own, chosen


def _learns(ephemeral: bool) -> bool:
    """Whether earlier runs' measurements are used: LFM_HISTORY says so; else by managers that are there to stay."""
    return os.environ.get("LFM_HISTORY", "off" if ephemeral else "on").lower() not in ("off", "0", "no", "")


def _ports(text: str, run: RunDirectory) -> tuple[int, ...]:
    """"9100", "9100-9200", or "0": any, but the same as before if this run had one, for its peers look there."""
    first, _, last = text.partition("-")
    try:
        ports = tuple(range(int(first), int(last or first) + 1))
    except ValueError:
        ports = ()
    if not ports or not all(0 <= port < 65536 for port in ports):
        raise ValueError(f"{text!r} is neither a port nor a range of ports like 9100-9200")
    remembered = run.path / "port"
    if ports == (0,) and remembered.exists():
        return (int(remembered.read_text() or 0), 0)
    return ports


def _log_to(run: RunDirectory, ephemeral: bool) -> None:
    handlers: list[logging.Handler] = [logging.FileHandler(run.path / "log")]
    if not ephemeral:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", handlers=handlers)


def _greet(run: RunDirectory, addresses: tuple[str, ...], ephemeral: bool) -> None:
    """What to type next."""
    if ephemeral:
        return
    port = addresses[0].rsplit(":", 1)[1]
    write_private(run.path / "port", port)
    for line in greeting(run.path, addresses):
        click.echo(line)


def greeting(directory: Path, addresses: tuple[str, ...]) -> list[str]:
    known = directory.parent == runs_root()
    chosen = directory.name if known else str(directory)
    return [
        f"run {directory.name!r} is ready: {', '.join(addresses)}",
        f"  a worker here:       lfm worker start --run {chosen}",
        f"  a worker elsewhere:  lfm worker start --connect {directory}/worker.json   (a copy of that file will do)",
        f'  your script:         LFM_RUN={chosen} python script.py   or   lfm.Executor("{chosen}")',
        f"  watch, stop:         lfm top --run {chosen}   lfm manager stop --run {chosen}",
    ]


def _in_background(directory: Path) -> None:
    """Start the same command detached, and wait until it can be reached."""
    arguments = [a for a in sys.argv[1:] if a != "--background"]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = directory / "start.log"
    with open(said, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "lfm", *arguments], stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if child.poll() is not None:
            words = said.read_text(errors="replace").strip().splitlines()
            fail((words[-1] if words else "the manager ended at once").removeprefix("lfm: ").strip(), code=FAILED)
        try:
            file = ConnectionFile.read(directory / "viewer.json")  # the last to be written
        except ConnectionFailed:
            file = None
        if file is not None and file.pid == child.pid:
            for line in greeting(directory, file.addresses):
                click.echo(line)
            return
        time.sleep(0.02)
    child.terminate()
    fail(f"the manager could not be reached within {START_TIMEOUT:.0f} s", f"its words: {said}")


@manager.command()
@run_option
@json_option
def info(run: str | None, as_json: bool) -> None:
    """Where the manager is, and where its files are."""
    body = ask(run, "info")
    if as_json:
        print_json(body)
        return
    for line in greeting(Path(body["directory"]), tuple(body["addresses"])):
        click.echo(line)
    click.echo(f"  process {body['pid']} on {body['host']}, up for {duration(body['up_s'])}")
    click.echo(f"  sent {size(body['blob_bytes_sent'])} of environments, functions and data")
    click.echo(f"  sizes by {body['strategy']}; store: {body['store']}; log: {body['log']}")


@manager.command()
@run_option
@click.option("--keep-workers", is_flag=True, help="Let the workers wait for the next manager on this run directory.")
@click.option("--timeout", default="30s", show_default=True, metavar="D", help="How long to wait for its end.")
def stop(run: str | None, keep_workers: bool, timeout: str) -> None:
    """Stop the manager and its workers.  What is unfinished stays in the run directory, for the next start."""
    try:
        path = locate(run, "client")
        patience = parse_duration(timeout)
    except ConnectionFailed as error:
        fail(str(error), code=3)
    except ValueError as error:
        fail(str(error), code=USAGE)
    body = ask(str(path), "shutdown", role="client", keep_workers=keep_workers)
    end = time.monotonic() + patience
    while path.exists():
        if time.monotonic() > end:
            fail(f"the manager (process {body['pid']}) has not ended yet")
        time.sleep(0.02)
    left = int(body.get("unfinished", 0))
    click.echo("stopped" + (f"; {left} unfinished calls wait in {path.parent}" if left else ""))


@manager.command()
@click.option("--forget", metavar="CATEGORY", help="Forget what calls of this category took.")
@click.option("--forget-all", is_flag=True, help="Forget everything.")
@json_option
def history(forget: str | None, forget_all: bool, as_json: bool) -> None:
    """What calls took in earlier runs, by which the next ones are sized first."""
    from lfm_manager.shell.history import History, path

    try:
        kept = History()
        if forget or forget_all:
            click.echo(f"forgot {kept.forget(None if forget_all else forget)} measurements")
            return
        rows = kept.rows()
    except (sqlite3.Error, OSError) as error:
        fail(f"cannot use {path()}: {error}")
    if as_json:
        print_json({"schema": "lfm.history/1", "measurements": rows})
        return
    by_category: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_category.setdefault(row["category"], []).append(row)
    print_table(
        ["CATEGORY", ">MEASURED", ">MEMORY p50", ">MAX", ">DISK MAX", ">TIME p50"],
        [
            (name, len(of), size(_middle(of, "memory")), size(max(r["memory"] for r in of)),
             size(max(r["disk"] for r in of)), duration(_middle(of, "wall_s")))
            for name, of in sorted(by_category.items())
        ],
    )


def _middle(rows: list[dict[str, Any]], name: str) -> float:
    return float(sorted(row[name] for row in rows)[len(rows) // 2])


@manager.command()
@run_option
@click.option("--timeout", metavar="D", help="Give up after so long.  [default: never]")
def wait(run: str | None, timeout: str | None) -> None:
    """Wait until no call is unfinished."""
    try:
        end = None if timeout is None else time.monotonic() + parse_duration(timeout)
    except ValueError as error:
        fail(str(error), code=USAGE)
    pause = 0.1
    while True:
        calls = ask(run, "status")["calls"]
        left = sum(calls.get(n, 0) for n in ("waiting", "ready", "placed", "running", "collecting"))
        if not left:
            return
        if end is not None and time.monotonic() > end:
            fail(f"{left} calls are unfinished")
        time.sleep(pause)
        pause = min(pause * 1.5, 5.0)

"""``lfm env``: look at what functions need, build it, and look after what was built.

The environments are this user's, on this machine; no manager is asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfm.cli.common import ask, duration, fail, json_option, print_json, print_table, size
from lfm.function import sent
from lfm.function.sent import own_files
from lfm_manager.environments import described
from lfm_manager.environments.described import ID
from lfm_manager.environments.target import load

if TYPE_CHECKING:
    from lfm.function.plan import Plan
    from lfm_manager.environments.store import Built, Store

_FUNCTION = "FILE:FUNCTION"


@click.group()
def env() -> None:
    """Resolve, pack and look at environments."""


# ---------------------------------------------------------------- from a function


def _choices(command: Any) -> Any:
    command = click.option(
        "--as-module",
        is_flag=True,
        help="As a script would send it that imports FILE: the file goes along whole.",
    )(command)
    command = click.option(
        "--exclude", "-x", multiple=True, metavar="NAME", help="Leave this module or distribution behind."
    )(command)
    return click.option(
        "--imports", "-i", multiple=True, metavar="NAME", help="Take this module or distribution along too."
    )(command)


@env.command()
@click.argument("function", metavar=_FUNCTION)
@_choices
@json_option
def resolve(
    function: str, imports: tuple[str, ...], exclude: tuple[str, ...], as_module: bool, as_json: bool
) -> None:
    """Say what FUNCTION needs, and why; build nothing.

    FILE is loaded as a module by this Python, in this environment, so what it does on import is done; FUNCTION
    is not called.  It is looked at as `python FILE` would send it, with only what it uses of its file.
    """
    packed = _packed(function, imports, exclude, as_module)
    built = _store().find(packed.plan.key)
    body = described.resolved(packed) | {"built": built is not None}
    if as_json:
        print_json({"schema": "lfm.env.resolve/1"} | body)
        return
    _print_distributions(body["distributions"])
    for name in body["overlay"]:
        click.echo(f"own file: {name}")
    _print_warnings(packed.warnings)
    count, whole = len(body["distributions"]), packed.plan.whole.get("distributions", 0)
    of_whole = f" of {whole} installed" if whole else ""
    state = "packed" if built else "not packed yet"
    click.echo(f"{count} distributions{of_whole}; environment {packed.plan.key[:ID]}, {state}")


@env.command()
@click.argument("function", metavar=_FUNCTION)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Put a copy of the tarball here."
)
@_choices
@json_option
def pack(
    function: str, output: Path | None, imports: tuple[str, ...], exclude: tuple[str, ...], as_module: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Build and pack what FUNCTION needs, as a submit would.

    FILE is loaded as a module by this Python, in this environment; FUNCTION is not called.
    """
    packed = _packed(function, imports, exclude, as_module)
    _print_warnings(packed.warnings)
    built = _build(packed.plan)
    sent.note(built.key, packed.name, packed.overlay)
    if output is not None:
        _copy(built.path, output)
    if as_json:
        own = {"overlay": own_files(packed.overlay), "output": str(output or built.path)}
        print_json({"schema": "lfm.env.pack/1"} | described.shown(built) | own)
        return
    _print_summary(built)
    click.echo(str(output or built.path))


def _packed(function: str, imports: tuple[str, ...], exclude: tuple[str, ...], as_module: bool) -> Any:
    from lfm.errors import LfmError
    from lfm.function.pack import Packer

    target = load(function, as_module)
    try:
        return Packer().pack(target, imports=imports, exclude=exclude)
    except LfmError as error:
        fail(str(error), getattr(error, "hint", ""))


def _build(plan: Plan) -> Built:
    from lfm_manager.environments.child import build
    from lfm_manager.environments.problems import BuildFailed

    try:
        with _Bar() as bar:
            return build(plan, _store(), bar.report)
    except BuildFailed as error:
        fail(error.reason, error.hint)


class _Bar:
    """A progress bar per stage on stderr, where that is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from lfm.cli.common import console

        self._progress = Progress(
            TextColumn("{task.description:<8}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn(),
            console=console(stderr=True), disable=not sys.stderr.isatty(), transient=True,
        )  # fmt: skip
        self._stages: dict[str, Any] = {}

    def report(self, stage: str, done: int, total: int, text: str) -> None:
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, total=total or None, text=text)
        self._progress.update(self._stages[stage], completed=done, total=total or None, text=text)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


# ---------------------------------------------------------------- what was built


@env.command("list")
@click.option("--run", metavar="NAME|DIR|FILE", help="List those of this run instead.")
@json_option
def list_(run: str | None, as_json: bool) -> None:
    """The environments packed on this machine, the last used first.

    With --run, those of a run: where they stand, how many calls wait for them, to which workers they are on their way.
    """
    if run is not None:
        _list_run(run, as_json)
        return
    all_built = _store().all()
    if as_json:
        print_json({"schema": "lfm.env.list/1", "environments": [described.summary(built) for built in all_built]})
        return
    print_table(
        ["id", "python", ">packages", ">tarball", ">unpacked", ">built in", "holds"],
        [
            [
                b.key[:ID],
                b.python,
                len(b.distributions),
                size(b.bytes),
                size(b.unpacked_bytes),
                duration(b.built_s),
                described.holds(b),
            ]
            for b in all_built
        ],
    )


def _list_run(run: str, as_json: bool) -> None:
    body = ask(run, "environments")
    if as_json:
        print_json(body)
        return
    rows = []
    for one in body["environments"]:
        ways = [f"{100 * w['done'] // max(1, w['total'])} % {w['stage']} {w['worker']}" for w in one.get("coming", ())]
        rows.append([one["id"][:ID], one["state"], one["waiting"], size(one["bytes"]), ", ".join(ways) or one["reason"], one["name"]])
    print_table(["id", "state", ">waiting", ">tarball", "on its way", "holds"], rows)


@env.command()
@click.argument("environment", metavar="ID")
@json_option
def show(environment: str, as_json: bool) -> None:
    """What an environment holds, and why.  ID is the beginning of its id or digest."""
    built = _one(environment)
    if as_json:
        print_json({"schema": "lfm.env.show/1"} | described.shown(built))
        return
    _print_summary(built)
    _print_distributions(list(built.distributions))
    for name in sent.noted(built.key):
        click.echo(f"own file, sent along: {name}")
    _print_warnings(built.warnings)


@env.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """How two environments differ."""
    a, b = _one(first), _one(second)
    changes = described.differences(a, b)
    if as_json:
        both = {"a": a.key, "b": b.key, "bytes": [a.bytes, b.bytes], "python": [a.python, b.python]}
        print_json({"schema": "lfm.env.diff/1"} | both | {"distributions": changes})
        return
    if a.python != b.python:
        click.echo(f"python {a.python} -> {b.python}")
    rows = [[c["name"], c["a"] or "-", c["b"] or "-"] for c in changes]
    print_table(["distribution", a.key[:ID], b.key[:ID]], rows)
    click.echo(f"tarball {size(a.bytes)} -> {size(b.bytes)}")


@env.command()
@click.argument("environment", metavar="ID")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to.  [default: stdout, for text]",
)
@click.option(
    "--format", "kind", type=click.Choice(["tarball", "requirements", "conda"]),
    help="The tarball itself, a requirements list, or an environment.yml.  [default: by the output's name]",
)  # fmt: skip
def export(environment: str, output: Path | None, kind: str | None) -> None:
    """Write an environment down for use elsewhere: its tarball, or its exact versions as text."""
    built = _one(environment)
    kind = kind or described.kind_of(output)
    if kind == "tarball":
        if output is None:
            fail("a tarball is not for a terminal", "say where with -o FILE")
        _copy(built.path, output)
        return
    text = described.requirements(built) if kind == "requirements" else described.environment_yml(built)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")


@env.command()
@click.option(
    "--keep", metavar="SIZE", help="How much of each cache may stay.  [default: LFM_CACHE_LIMIT, else 20GB]"
)
@click.option(
    "--all", "everything", is_flag=True, help="Empty them, and what was fetched from conda channels."
)
@json_option
def gc(keep: str | None, everything: bool, as_json: bool) -> None:
    """Remove what was used longest ago: packed environments, and the packages they were made of.

    Nothing that is being built, or that a manager holds, goes.  What is needed again is built again.
    """
    import shutil

    from lfm.protocol.resources import parse_size
    from lfm_manager.environments.packages import Packages
    from lfm_manager.environments.places import cache_limit, conda_root, packages_root

    try:
        bound = 0 if everything else parse_size(keep) if keep else cache_limit()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    removed = _store().gc(bound)
    packages, freed = Packages(packages_root()).gc(bound)
    if everything:
        shutil.rmtree(conda_root(), ignore_errors=True)
    freed += sum(built.bytes for built in removed)
    if as_json:
        keys = [built.key for built in removed]
        print_json({"schema": "lfm.env.gc/1", "environments": keys, "packages": packages, "bytes": freed})
        return
    click.echo(f"removed {len(removed)} environments and {packages} packages: {size(freed)}")


# ---------------------------------------------------------------- what is printed


def _print_summary(built: Built) -> None:
    saved = ""
    if whole := built.whole.get("bytes"):
        times = whole / max(1, built.unpacked_bytes)
        saved = f"; everything installed is {size(whole)}, {times:.1f} times as much"
    click.echo(f"environment {built.key}")
    click.echo(f"python {built.python}, {built.machine}, {built.libc}; packed in {duration(built.built_s)}")
    click.echo(
        f"{size(built.bytes)} packed, {size(built.unpacked_bytes)} unpacked in {built.files} files{saved}"
    )


def _print_distributions(distributions: list[dict[str, str]]) -> None:
    if distributions:
        rows = [[d["name"], d["version"], d["why"]] for d in distributions]
        print_table(["distribution", "version", "why"], rows)


def _print_warnings(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _one(start: str) -> Built:
    found = _store().resolve(start)
    if not found:
        fail(f"no environment {start} on this machine", "lfm env list shows what there is")
    if len({built.key for built in found}) > 1:
        fail(f"{start} could be any of {', '.join(b.key[:ID] for b in found[:5])}", "give more of it")
    return found[0]


def _copy(source: Path, output: Path) -> None:
    import shutil

    try:
        shutil.copyfile(source, output)
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")


def _store() -> Store:
    from lfm_manager.environments.store import Store

    return Store()

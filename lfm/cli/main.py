"""The command ``lfm``: finds its sub-commands, loads the one that is asked for, and never shows a traceback.

Its own commands are named here with their modules; the roles and anybody else add theirs through entry points
of the group ``lfm.commands``.  One that cannot be loaded is named as such and harms no other.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any

import click

from lfm import __version__
from lfm.cli.common import FAILED, NO_MANAGER, Failure

GROUP = "lfm.commands"
OWN = {  # name: where it is, and one line for the help
    "status": ("lfm.cli.status:status", "One screen: manager, workers, calls, categories, alerts."),
    "top": ("lfm.cli.top:top", "The same, live."),
    "tasks": ("lfm.cli.tasks:tasks", "List calls."),
    "explain": ("lfm.cli.tasks:explain", "Why a call waits, or how it ended."),
    "logs": ("lfm.cli.tasks:logs", "What a call printed."),
    "cancel": ("lfm.cli.tasks:cancel", "Take calls back; kill those that run."),
    "retry": ("lfm.cli.tasks:retry", "Run failed calls again."),
    "categories": ("lfm.cli.status:categories", "Per function: allocated and measured."),
    "monitor": ("lfm.cli.monitor:monitor", "One command under a monitor, with no manager."),
}
OTHERS = {  # what the roles' commands do, so that the help need not load them
    "manager": "Start, stop and describe a manager.",
    "worker": "Start, list, drain and stop workers.",
    "env": "Resolve, pack and look at environments.",
    "simulate": "Replay a trace with the real scheduler in virtual time.",
}


class Commands(click.Group):
    """Loads a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*OWN, *sorted(set(_entry_points()) - set(OWN))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        try:
            if name in OWN:
                module, _, attribute = OWN[name][0].partition(":")
                command = getattr(import_module(module), attribute)
            elif (found := _entry_point(name)) is not None:
                command = found.load()
            else:
                return None
        except Exception as error:
            if os.environ.get("LFM_DEBUG"):
                raise
            return _Broken(name, f"{type(error).__name__}: {error}")
        if not isinstance(command, click.Command):
            return _Broken(name, f"{command!r} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._help(ctx, name)) for name in self.list_commands(ctx)])

    def _help(self, ctx: click.Context, name: str) -> str:
        if known := OWN.get(name, (None, OTHERS.get(name)))[1]:
            return known
        command = self.get_command(ctx, name)
        return command.get_short_help_str(80) if command is not None else ""


class _Broken(click.Command):
    """Stands where a command could not be loaded, and says why when it is called."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, add_help_option=False, short_help=f"(cannot be loaded: {reason})")
        self.ignore_unknown_options = True
        self.allow_extra_args = True
        self._reason = reason

    def invoke(self, ctx: click.Context) -> Any:
        raise Failure(f"the command {self.name!r} cannot be loaded: {self._reason}", "LFM_DEBUG=1 shows where")


def _entry_point(name: str) -> EntryPoint | None:
    """Our own distribution's first: to search all of them takes long where many are installed."""
    try:
        for found in distribution("lfm").entry_points:
            if found.group == GROUP and found.name == name:
                return found
    except PackageNotFoundError:
        pass
    return _entry_points().get(name)


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=GROUP)}


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 no manager, 4 calls failed.",
)
@click.version_option(__version__, prog_name="lfm", message="%(prog)s %(version)s")
def lfm() -> None:
    """Run each call of each Python function in its own minimal environment, isolated, measured and right-sized.

    \b
    lfm manager start --background      a manager for this run
    lfm worker start                    a worker for it, here or on any node
    LFM_RUN=NAME python script.py       your script: lfm.Executor() finds it
    lfm top                             watch it
    """


def main() -> None:
    """The console script."""
    from lfm.errors import ConnectionFailed, LfmError

    try:
        lfm(prog_name="lfm")
    except ConnectionFailed as error:
        _end(str(error), NO_MANAGER)
    except LfmError as error:
        _end(str(error), FAILED)
    except Exception as error:
        if os.environ.get("LFM_DEBUG"):
            raise
        _end(f"{type(error).__name__}: {error}", FAILED, "this should not happen; LFM_DEBUG=1 shows where")


def _end(text: str, code: int, hint: str = "") -> None:
    Failure(text, hint).show()
    sys.exit(code)

"""What the sub-commands share: naming a run, asking its manager, printing a table or JSON, failing in one line.

Owns the exit codes.  Knows nothing of what the answers mean.  Heavy imports happen where they are used: a
command that prints its help loads neither zmq nor rich.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.table import Table

FAILED, USAGE, NO_MANAGER, CALLS_FAILED = 1, 2, 3, 4
TIMEOUT = 10.0  # seconds a question may take

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Failure(click.ClickException):
    """One line, a hint, an exit code."""

    def __init__(self, text: str, hint: str = "", code: int = FAILED) -> None:
        super().__init__(text)
        self.hint = hint
        self.exit_code = code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"lfm: {self.format_message()}", err=True)
        if self.hint:
            click.echo(f"     {self.hint}", err=True)


def fail(text: str, hint: str = "", code: int = FAILED) -> NoReturn:
    """End the command with one line and a hint on stderr."""
    raise Failure(text, hint, code)


def run_option(command: _Command) -> _Command:
    """``--run``, as the argument ``run``."""
    return click.option(
        "--run", "run", metavar="NAME|DIR|FILE", envvar="LFM_RUN", default=None,
        help="Which run: its name, run directory or connection file.  [default: LFM_RUN, else your newest, else that of your script on this machine]",
    )(command)


def json_option(command: _Command) -> _Command:
    """``--json``, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: stable, with a schema field.")(command)


def print_json(body: Any) -> None:
    """What ``--json`` prints."""
    click.echo(json.dumps(body, indent=2, default=str))


# ---------------------------------------------------------------- asking a manager


class Link:
    """A short-lived session with a manager, to ask questions.  A context manager.

    The role "viewer" may look; "client" may also cancel, drain and stop.
    """

    def __init__(self, run: str | None, role: str = "viewer", timeout: float = TIMEOUT) -> None:
        from secrets import token_hex

        import zmq

        from lfm.connection import Dialer
        from lfm.errors import ConnectionFailed, ProtocolError
        from lfm.protocol import messages as m
        from lfm.run import find_embedded, find_run

        session = token_hex(8)

        def hello() -> m.ViewerHello | m.ClientHello:
            if role == "viewer":
                return m.ViewerHello(session)
            return m.ClientHello(session, user=_user(), host=_host(), pid=_pid())

        try:
            try:
                found = find_run(run, role)
            except ConnectionFailed:
                if run is not None or (own := find_embedded(role)) is None:
                    raise
                found = own
            self._dialer = Dialer(found, hello)
            self.welcome = self._dialer.connect(timeout)
        except ConnectionFailed as error:
            fail(str(error), code=NO_MANAGER)
        except ProtocolError as error:
            fail(str(error))
        self._poller = zmq.Poller()
        self._dialer.register(self._poller)
        self._timeout = timeout
        self._number = 0

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """The manager's answer; fails in one line where there is none."""
        import time

        from lfm.errors import ConnectionFailed
        from lfm.protocol import messages as m

        self._number += 1
        self._dialer.send(m.Query(self._number, what, arguments))
        self._dialer.flush()
        end = time.monotonic() + self._timeout
        try:
            while (now := time.monotonic()) < end:
                self._poller.poll(max(0, int((min(end, self._dialer.deadline()) - now) * 1000)) + 1)
                for message in self._dialer.receive():
                    if isinstance(message, m.Answer) and message.number == self._number:
                        return _body(message.body)
                self._dialer.tick()
        except ConnectionFailed as error:
            fail(str(error), code=NO_MANAGER)
        fail("the manager does not answer", "its log may say why; see: lfm manager info", NO_MANAGER)

    def close(self) -> None:
        self._dialer.close(goodbye=True)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def ask(run: str | None, what: str, *, role: str = "viewer", timeout: float = TIMEOUT, **arguments: Any) -> dict[str, Any]:
    """One question to a run's manager."""
    with Link(run, role, timeout) as link:
        return link.ask(what, **arguments)


def _body(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        fail("the manager's answer is not understood", "are both ends of the same version?")
    if "error" in body:
        fail(str(body["error"]), str(body.get("hint", "")))
    return body


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        import os

        return str(os.getuid())


def _host() -> str:
    import socket

    return socket.gethostname()


def _pid() -> int:
    import os

    return os.getpid()


# ---------------------------------------------------------------- printing


def console(*, stderr: bool = False) -> Console:
    """Where people read: narrow enough for a terminal, wide enough for a file."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else 160)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """A plain table.  A column whose name starts with ``>`` is aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for name in columns:
        made.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*[Text("" if cell is None else str(cell)) for cell in row])
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout."""
    console().print(table(columns, rows, title=title))


def size(amount: float | None) -> str:
    """``3.2 GB``, or a dash."""
    from lfm.protocol.resources import format_size

    return "-" if amount is None else format_size(amount)


def duration(seconds: float | None) -> str:
    """``3m 20s``, or a dash."""
    from lfm.protocol.resources import format_duration

    return "-" if seconds is None else format_duration(seconds)

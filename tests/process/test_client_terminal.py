"""What a person sees at a terminal while environments are made: a real pty, and an emulator that keeps its screen.

The child's main thread runs a script; a thread of its own does as the session's thread would, at our word.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest

from lfm.testing import wait_until

pytestmark = pytest.mark.process
PATIENCE = 90.0
ROWS, COLUMNS = 12, 80
OWN = " 50%|#####     | 5/10"  # as of tqdm: no newline, and the cursor stays behind it

SESSION = """
import concurrent.futures, os, select, sys, threading
from lfm import progress
from lfm.future import Future
from lfm.protocol.messages import EnvironmentProgress

news = progress.EnvironmentNews()
futures = [Future() for _ in range(3)]

def tell(stage, done=0, total=0, text=""):
    news.hear(EnvironmentProgress("key", "numpy (+1)", stage, done, total, text))
    news.look(news.deadline() + 1)

def obey():
    for word in os.fdopen(WORDS):
        exec(word, globals())
        os.write(TELLS, b".")

threading.Thread(target=obey, daemon=True).start()
def own(): sys.stderr.write("\\r" + OWN); sys.stderr.flush()
"""


class Terminal:
    """A child on a terminal of its own."""

    def __init__(self, script: str, session: str = SESSION, unsized: bool = False, **environment: str) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        theirs, self._words = os.pipe()
        self._done, tells = os.pipe()
        source = f"OWN, WORDS, TELLS = {OWN!r}, {theirs}, {tells}\n{session}\n{textwrap.dedent(script)}"
        environment = {**os.environ, "TERM": "xterm", "LFM_SUMMARY": "off", "PYTHONUTF8": "1"} | environment
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            try:
                for descriptor in (theirs, tells):
                    os.set_inheritable(descriptor, True)
                os.execve(sys.executable, [sys.executable, "-c", source], environment)
            finally:
                os._exit(127)
        os.close(theirs)
        os.close(tells)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *((0, 0) if unsized else (ROWS, COLUMNS)), 0, 0))
        self.ended, self.written = False, b""

    def say(self, word: str) -> None:
        """Have it done by the session's thread."""
        os.write(self._words, word.encode() + b"\n")
        assert select.select([self._done], [], [], PATIENCE)[0] and os.read(self._done, 1) == b".", word

    def press(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen now."""
        while not self.ended and select.select([self._terminal], [], [], 0.02)[0]:
            try:
                data = os.read(self._terminal, 1 << 16)
            except OSError:  # nobody has it open any more
                data = b""
            self.ended = not data
            self.written += data
            self._stream.feed(data)
        return [line for line in (line.rstrip() for line in self.screen.display) if line]

    def shows(self, *parts: str) -> list[str]:
        """As soon as a line has all of these."""
        wait_until(lambda: any(all(part in line for part in parts) for line in self.lines), f"{parts} on the screen", PATIENCE)
        return self.lines

    def to_the_end(self, word: str = "") -> list[str]:
        """After ``word``, with which the script can end."""
        if word:
            os.write(self._words, word.encode() + b"\n")
        wait_until(lambda: (self.lines, self.ended)[1], "its end", PATIENCE)
        return self.lines

    def close(self) -> None:
        if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for descriptor in (self._words, self._done, self._terminal):
            os.close(descriptor)


@contextmanager
def terminal(script: str, session: str = SESSION, unsized: bool = False, **environment: str) -> Iterator[Terminal]:
    one = Terminal(script, session, unsized, **environment)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("above", [0, ROWS + 5])
def test_a_bar_below_the_script_s_own_and_no_trace_of_it(above: int) -> None:
    """At the top of a screen, and at the bottom of a full one."""
    with terminal(
        f"""
        for number in range({above}): print("line", number)
        own()
        futures[0].result()
        own()
        print("\\nthat was", futures[1].result())
        """
    ) as seen:
        seen.shows(OWN)
        before = seen.lines[-1], seen.screen.cursor.x
        seen.say("tell('build', 3, 10, 'scipy')")
        lines = seen.shows("building scipy", "30%", "━╌")
        assert (lines[-2], seen.screen.cursor.x) == before and "lfm: numpy (+1)" in lines[-1]
        seen.say("tell('pack', 9, 10)")
        assert len(seen.shows("packing", "90%")) == len(lines)
        seen.say("tell('ready')")
        lines = seen.shows("lfm: environment with numpy (+1): ready after")
        assert (lines[-1], seen.screen.cursor.x) == before and "ready" in lines[-2]
        seen.say("tell('send', 500, 1000, 'sent to 2 workers')")
        seen.shows("sending to 2 workers", "50% of 1.0 kB")
        seen.say("tell('unpack', 900, 1000, 'unpacked on 2 workers')")
        seen.shows("unpacking on 2 workers", "90%")
        seen.say("futures[0].set_result(1)")
        lines = seen.to_the_end("tell('unpack', 950, 1000, 'unpacked on 2 workers'); futures[1].set_result('all')")
        assert lines[-3:] == [next(line for line in lines if "ready after" in line), OWN, "that was all"]
        assert len(lines) == 3 or lines[:-3] == [f"line {n}" for n in range(above)][-(len(lines) - 3) :]


@pytest.mark.parametrize(
    "waits",
    [
        "concurrent.futures.wait(futures)",
        "[f for f in concurrent.futures.as_completed(futures)]",
        "futures[0].exception()",
        "concurrent.futures.wait([concurrent.futures.Future(), futures[0]], return_when='FIRST_COMPLETED')",
    ],
)
def test_whatever_waits_for_calls(waits: str) -> None:
    with terminal(f"own()\n{waits}\nprint(); print('on')") as seen:
        seen.shows(OWN)
        seen.say("tell('build', 3, 10)")
        seen.shows("lfm:", "30%")
        assert seen.to_the_end("[f.set_result(1) for f in futures]") == [OWN, "on"]


def test_a_script_that_does_something_else_is_left_alone() -> None:
    with terminal("own()\nsys.stdin.readline()\nfutures[0].result()") as seen:
        seen.shows(OWN)
        seen.say("tell('build', 3, 10); tell('build', 4, 10); sys.stderr.write('!'); sys.stderr.flush()")
        assert seen.shows("!") == [OWN + "!"]
        seen.say("progress.EVERY = 0; tell('build', 5, 10); progress.EVERY = 1e9")
        lines = seen.shows("lfm: environment with numpy (+1): building, 50%, ")  # a line, above
        assert lines[1:] == [OWN + "!"]
        seen.press(b"\n")
        seen.say("while not news._screen._waiting: pass")
        seen.say("tell('build', 6, 10)")
        seen.shows("60%", "━")
        assert seen.to_the_end("futures[0].set_result(1)") == lines


def test_control_c_leaves_no_bar() -> None:
    with terminal("own()\nfutures[0].result()") as seen:
        seen.shows(OWN)
        seen.say("tell('build', 3, 10)")
        seen.shows("30%")
        seen.press(b"\x03")
        lines = seen.to_the_end()
        assert lines[-1] == "KeyboardInterrupt" and not any("30%" in line or "━" in line for line in lines), lines


def test_what_raises_or_exits_while_a_bar_is_shown() -> None:
    with terminal("own()\ntry: futures[0].result()\nfinally: print(); print('on')") as seen:
        seen.shows(OWN)
        seen.say("tell('build', 3, 10)")
        seen.shows("30%")
        assert seen.to_the_end("futures[0].set_exception(SystemExit('that is all'))") == [OWN, "on", "that is all"]


def test_a_terminal_that_knows_no_bars() -> None:
    with terminal("futures[0].result()", TERM="dumb") as seen:
        (line,) = seen.to_the_end("tell('build', 3, 10); tell('ready'); futures[0].set_result(1)")
        assert line.startswith("lfm: environment with numpy (+1): ready after")


def test_a_terminal_whose_size_nobody_has_told() -> None:
    with terminal("own()\nfutures[0].result()", unsized=True) as seen:
        seen.shows(OWN)
        seen.say("tell('build', 3, 10)")
        seen.shows("lfm: numpy (+1): building", "30%")
        assert seen.to_the_end("futures[0].set_result(1)") == [OWN]


def test_a_terminal_that_is_stopped_holds_nobody() -> None:
    """Ctrl-S: whatever is written then waits; the session must not."""
    with terminal("own()\nfutures[0].result()") as seen:
        seen.shows(OWN)
        seen.press(b"\x13")
        seen.say("while select.select([], [2], [], 0)[1]: pass")  # until it has stopped
        seen.say("tell('build', 3, 10); tell('ready')")
        seen.press(b"\x11")
        assert seen.to_the_end("futures[0].set_result(1)") == [OWN]


def test_a_first_call_from_a_terminal(tmp_path: Path) -> None:
    """All of it, with an environment that nobody has made yet: bars, then one line, then what the script prints."""
    info = tmp_path / "site-packages" / "shown_to_people-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: shown-to-people\nVersion: 1.0\n\n")
    (info / "RECORD").write_text("shown_to_people.py,,\n")
    (tmp_path / "site-packages" / "shown_to_people.py").write_text(f"PLACE = {str(tmp_path)!r}  # {uuid.uuid4()}\n")
    script = """
        import lfm
        def fit():
            import shown_to_people
            return len(shown_to_people.PLACE)
        with lfm.Executor() as ex:
            print("begun")
            print("gave", ex.submit(fit).result())
        """
    with terminal(script, "", PYTHONPATH=str(tmp_path / "site-packages")) as seen:
        lines = seen.to_the_end()
        assert len(lines) == 3, (lines, seen.written)
        begun, said, gave = lines
        assert b"lfm: shown-to-people" in seen.written or float(said.split()[-2]) < 2  # too soon over for a bar
        assert begun == "begun" and said.startswith("lfm: environment with shown-to-people") and "ready after" in said
        assert gave == f"gave {len(str(tmp_path))}"

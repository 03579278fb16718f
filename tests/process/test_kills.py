"""kill -9 of every part and of pairs of them, at random moments under load: nothing lost, nothing answered twice,
no process and no file left.

One cluster lives through all rounds; what is killed is started again, and the client comes back to its session by
its name.  Only processes that the test started are killed, or that these did: by descriptors that outlive a pid.
``LFM_ROUNDS`` makes more rounds; the seed of a failing one is in its name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from lfm.testing import LocalCluster, wait_until

PATIENCE = 240.0  # seconds in which there must be some progress, on whatever machine
ROUNDS = int(os.environ.get("LFM_ROUNDS", "50"))
PARTS = 5  # a test each
TARGETS = ("client", "manager", "worker", "template", "monitor", "call")
pytestmark = [pytest.mark.process, pytest.mark.timeout(1200 + 30 * ROUNDS)]

# Writes a line before it does what loses it: S id tag (submitted), C id (the manager has confirmed it), A id value.
CLIENT = """
    import os, subprocess, sys, time, warnings
    from concurrent.futures import Future as Plain
    import lfm
    from lfm.blame import Sealed

    run, folder, process, token = sys.argv[1:]
    warnings.simplefilter("ignore")
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(*words):
        os.write(log, (" ".join([process, *words]) + "\\n").encode())

    def work(tag, seconds, child, token):
        import subprocess, time
        if child:
            subprocess.Popen(["sleep", f"1000.{token}"])
        time.sleep(seconds)
        return tag

    def take(future):
        try:
            value = Plain.result(future)
            value = value.open() if isinstance(value, Sealed) else value
            say("A", future.id, value)
            future.result()
        except Exception as error:
            lost = sum(a.outcome == "lost" for a in future.attempts)
            say("E", future.id, str(lost), type(error).__name__, repr(str(error)))
            future.exception()

    ex = lfm.Executor(run, session="kills")
    small = ex.options(memory="40MB", cores=0.5, retries=50)
    open_, unsure, number = ex.futures(), [], 0
    say("up")
    while open_ or not os.path.exists(f"{folder}/stop"):
        while len(open_) < 10 and not os.path.exists(f"{folder}/stop"):
            number += 1
            tag = f"{process}.{number}"
            future = small.submit(work, tag, 0.02 * (number % 10), number % 4 == 0, token)
            say("S", future.id, tag)
            open_.append(future)
            unsure.append(future.id)
        if unsure and not ex._session._outbox and not ex._session._dialer.unacknowledged:
            for id in unsure:
                say("C", id)
            unsure.clear()
        for future in [f for f in open_ if f.done()]:
            take(future)
            open_.remove(future)
        time.sleep(0.01)
    ex.shutdown()
    say("end")
"""


class Scene:
    """The cluster, its client, and who can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(4).translate(str.maketrans("abcdef", "123456"))
        (folder / "client.py").write_text(textwrap.dedent(CLIENT))
        (folder / "tmp").mkdir()
        environ = {"TMPDIR": str(folder / "tmp"), "LFM_CACHE": str(folder / "cache"), "LFM_SCRATCH": str(folder / "scratch")}
        (folder / "scratch").mkdir()
        self.cluster = LocalCluster(workers=2, cores=1, memory="500MB", manager=("--lease", "15s"), environ=environ)
        self.clients = 0
        self.client: subprocess.Popen[bytes]
        self.start_client()

    def start_client(self) -> None:
        self.clients += 1
        with (self.folder / "said").open("ab") as said:
            self.client = subprocess.Popen(
                [sys.executable, str(self.folder / "client.py"), str(self.cluster.run), str(self.folder), f"p{self.clients}", self.token],
                env=self.cluster.environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )

    def lines(self, kind: str) -> list[list[str]]:
        """What all clients wrote of a kind: process, kind, words."""
        try:
            text = (self.folder / "log").read_text()
        except FileNotFoundError:
            return []
        return [words for line in text.splitlines() if (words := line.split(" "))[1] == kind]

    def answers(self) -> int:
        return len(self.lines("A"))

    def wait_answers(self, more: int) -> None:
        """Progress: so many more answers."""
        known = self.answers()

        def enough() -> bool:
            assert self.client.poll() is None, f"the client ended:\n{self.said()}"
            return self.answers() >= known + more

        wait_until(enough, f"{more} more answers:\n{self.said()}", PATIENCE)

    def said(self) -> str:
        said = self.folder / "said"
        log = self.cluster.log if self.cluster.home.exists() else ""
        return f"{said.read_text()[-3000:] if said.exists() else ''}\n{log[-3000:]}"

    # -- whom to kill

    def below(self, pid: int) -> list[int]:
        children: list[int] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    children += [int(child) for child in (task / "children").read_text().split()]
        return children

    def candidates(self, target: str) -> list[int]:
        workers = [w.pid for w in self.cluster.workers if w.poll() is None]
        templates = [t for w in workers for t in self.below(w)]
        monitors = [m for t in templates for m in self.below(t)]
        assert self.cluster.manager is not None
        return {
            "client": [self.client.pid], "manager": [self.cluster.manager.pid], "worker": workers, "template": templates,
            "monitor": monitors, "call": [c for m in monitors for c in self.below(m)],
        }[target]  # fmt: skip

    def kill(self, target: str, dice: Random) -> None:
        """One of a kind, if there is one now."""
        found = self.candidates(target)
        if not found:
            return
        pid = dice.choice(sorted(found))
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if pid in self.candidates(target):  # still the one that it was when the descriptor was opened
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], PATIENCE)  # until it is dead
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def restore(self) -> None:
        """Start again what is gone."""
        cluster = self.cluster
        assert cluster.manager is not None
        for process in (*cluster.workers, cluster.manager, self.client):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        if cluster.manager.poll() is not None:
            _close(cluster.manager)
            cluster.start_manager()
        for worker in [w for w in cluster.workers if w.poll() is not None]:
            _close(worker)
            cluster.workers.remove(worker)
            cluster.start_worker()
        if self.client.poll() is not None:
            self.start_client()

    # -- what must be true

    def check(self) -> None:
        values: dict[str, str] = {}
        tags = {words[2]: words[3] for words in self.lines("S")}
        for process, _, id_, value in self.lines("A"):
            assert values.setdefault(id_, value) == value, f"{id_} was answered {values[id_]} and {value}"
            assert tags.get(id_, value) == value, f"{id_} of {process} was to give {tags[id_]} and gave {value}"
        twice = Counter((words[0], words[2]) for words in (*self.lines("A"), *self.lines("E")))
        assert not [one for one, times in twice.items() if times > 1], "answered twice"
        for words in self.lines("E"):
            # whom three workers, or five templates, died under is rightly taken for the cause
            assert int(words[3]) >= 3, f"{' '.join(words)}\n{self.said()}"

    def finish(self) -> None:
        """The rest is answered, everybody goes, and nothing is left."""
        (self.folder / "stop").touch()
        known = -1
        while self.client.poll() is None:  # as long as it gets on
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.client.wait(PATIENCE)
            assert self.client.poll() is not None or self.answers() > known, f"it gets nowhere:\n{self.said()}"
            known = self.answers()
        assert self.client.returncode == 0, self.said()
        self.check()
        answered = {words[2] for words in (*self.lines("A"), *self.lines("E"))}
        lost = [words[2] for words in self.lines("C") if words[2] not in answered]
        assert not lost, f"the manager had confirmed these, and lost them: {lost}\n{self.said()}"
        for worker in self.cluster.workers:  # the last ones sweep what the killed ones left
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self.cluster.workers:
            worker.wait(PATIENCE)
        self.cluster.stop()
        wait_until(lambda: not self.strangers(), f"all processes to end: {self.strangers()}", PATIENCE)
        left = list((self.folder / "tmp").iterdir())
        assert not left, f"files are left: {left}"
        homes = [p for root in (self.folder / "scratch").iterdir() for p in (root / "workers").glob("*")]
        assert not homes, f"directories of workers are left: {homes}"

    def strangers(self) -> list[str]:
        """Processes that come from this scene: by what it alone has in its environment or command line."""
        marks = (str(self.folder).encode(), f"1000.{self.token}".encode())
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    if any(mark in line for mark in marks) or marks[0] in (entry / "environ").read_bytes():
                        found.append(f"{entry.name}: {line.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
        return found

    def close(self) -> None:
        self.client.kill()
        self.client.wait()
        self.cluster.stop()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("kills"))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_is_killed_nothing_is_lost(scene: Scene, part: int) -> None:
    scene.wait_answers(1)
    for number in range(part, ROUNDS, PARTS):
        dice = Random(number)
        targets = [TARGETS[number % len(TARGETS)], *([dice.choice(TARGETS)] if dice.random() < 0.4 else [])]
        wait_until(lambda: scene.candidates("call"), "a call to run", PATIENCE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            scene.client.wait(dice.random() * 0.3)  # a random moment
        for target in targets:
            scene.kill(target, dice)
        scene.restore()
        scene.wait_answers(3)
    scene.check()


def test_the_rest_is_answered_and_nothing_is_left(scene: Scene) -> None:
    scene.finish()

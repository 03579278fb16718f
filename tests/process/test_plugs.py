"""Pull any plug in the middle of the demo, put it back, and the table at the end is the same.

The demo's functions on real molecules, from a client that comes back to its session by its name, on a manager and two
workers, one of them behind a connection that is cut.  At random moments: kill -9 of manager, worker, client, template or
monitor, a manager that stands still, a cut.  What is killed is started again.  For ``make soak``: ``LFM_PLUGS`` rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from lfm.run import ConnectionFile
from lfm.testing import LocalCluster, wait_until

ROUNDS = int(os.environ.get("LFM_PLUGS", "0"))
FIRST = int(os.environ.get("LFM_SEED", "0"))
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLUGS = ("manager", "worker", "client", "template", "monitor", "pause", "cut")
pytestmark = [pytest.mark.process, pytest.mark.timeout(900), pytest.mark.skipif(not ROUNDS, reason="takes minutes: make soak")]

CLIENT = """
    import os, pickle, sys, warnings
    from concurrent.futures import Future as Plain
    from hashlib import sha256
    from pathlib import Path

    run, folder, examples = sys.argv[1:]
    sys.path.insert(0, examples)
    import drug_screening as demo
    import lfm
    from lfm.blame import Sealed
    import numpy as np

    warnings.simplefilter("ignore")
    folder = Path(folder)
    log = os.open(folder / "submitted", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    tags = dict(reversed(line.split()) for line in (folder / "submitted").read_text().splitlines())
    ex = lfm.Executor(run, session="plugs")
    there = {future.id: future for future in ex.futures()}
    # of several calls for one thing, which the last process could not say that it had submitted, the newest is taken
    known = {tag: there[id] for id, tag in ((i, t) for t, i in tags.items()) if id in there}

    def all_of(stage, fn, arguments):
        tags = [f"{stage}.{n}" for n in range(len(arguments))]
        futures = {}
        for tag, one in zip(tags, arguments):
            if (folder / tag).exists():
                continue
            if tag not in known:
                known[tag] = ex.options(retries=20).submit(fn, *one)
                os.write(log, f"{known[tag].id} {tag}\\n".encode())
            futures[tag] = known[tag]
        for tag, future in futures.items():
            value = Plain.result(future)
            value = value.open() if isinstance(value, Sealed) else value
            draft = folder / f".{tag}"
            draft.write_bytes(pickle.dumps(value))
            draft.rename(folder / tag)
            future.result()  # from now on it is forgotten
            os.write(1, b".")
        return [pickle.loads((folder / tag).read_bytes()) for tag in tags]

    lines, measured = demo.read_data(240)
    parts = list(demo.chunks(lines, 8))
    described = all_of("describe", demo.describe, [(part,) for part in parts])
    prints = all_of("fingerprint", demo.fingerprint, [([m.smiles for m in part],) for part in described])
    packed = np.concatenate(prints)
    activity = np.array([measured[m.name] for part in described for m in part])
    votes = all_of("predict", demo.predict, [(packed, activity, packed[:40], seed) for seed in range(12)])
    shown = "\\n".join(f"{m.name} {m.scaffold} {v:.6f}" for m, v in zip(sum(described, []), np.mean(votes, axis=0)))
    (folder / ".table").write_text(shown + "\\n" + sha256(packed.tobytes()).hexdigest())
    (folder / ".table").rename(folder / "table")
    ex.shutdown()
"""


class Wire:
    """A way to a port of this machine that can be cut: nothing passes, and nobody is told."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.whole = threading.Event()
        self.whole.set()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._door.accept()
                self.whole.wait()
                try:
                    other = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    one.close()
                    continue
                for pair in ((one, other), (other, one)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.whole.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if source is not sink:
            source.close()

    def close(self) -> None:
        self._door.close()
        self.whole.set()


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results"
        for name in ("results", "tmp", "scratch"):
            (folder / name).mkdir()
        (folder / "client.py").write_text(textwrap.dedent(CLIENT))
        environ = {"TMPDIR": str(folder / "tmp"), "LFM_SCRATCH": str(folder / "scratch")}
        self.cluster = LocalCluster(1, cores=2, memory="2GB", environ=environ)
        file = self.cluster.run / "worker.json"
        wait_until(file.exists, "the workers' file")
        self.wire = Wire(int(ConnectionFile.read(file).addresses[0].rpartition(":")[2]))
        self.cut_off = folder / "cut.json"
        self.cut_off.touch(0o600)
        self.cut_off.write_text(json.dumps(json.loads(file.read_text()) | {"addresses": [f"tcp://127.0.0.1:{self.wire.port}"]}))
        self.start_far()
        self.start_client()

    def start_far(self) -> None:
        self.cluster.workers.append(self.cluster._start(
            "worker", "start", "--connect", str(self.cut_off), "--stdin-eof", "--cores", "2", "--memory", "2GB", "--name", "far",
        ))  # fmt: skip

    def start_client(self) -> None:
        with (self.folder / "said").open("ab") as said:
            self.client = subprocess.Popen(
                [sys.executable, self.folder / "client.py", self.cluster.run, self.results, EXAMPLES], env=self.cluster.environ,
                stdout=said, stderr=said,
            )  # fmt: skip

    def said(self) -> str:
        return (self.folder / "said").read_text()[-3000:] + "\n" + self.cluster.log[-3000:]

    def below(self, pid: int) -> list[int]:
        found: list[int] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def one_of(self, what: str, dice: Random) -> int | None:
        workers = [w.pid for w in self.cluster.workers if w.poll() is None]
        templates = [t for w in workers for t in self.below(w)]
        assert self.cluster.manager is not None
        found = {
            "manager": [self.cluster.manager.pid], "worker": workers, "client": [self.client.pid], "template": templates,
            "monitor": [m for t in templates for m in self.below(t)],
        }[what]  # fmt: skip
        return dice.choice(found) if found else None

    def pull(self, what: str, dice: Random) -> None:
        if what == "cut":
            self.wire.whole.clear()
            time.sleep(dice.choice([3.0, 12.0]))
            self.wire.whole.set()
            return
        pid = self.one_of("manager" if what == "pause" else what, dice)
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        with contextlib.suppress(ProcessLookupError):
            if what == "pause":
                signal.pidfd_send_signal(handle, signal.SIGSTOP)
                time.sleep(20.0)
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            else:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 60.0)
        os.close(handle)

    def put_back(self) -> None:
        cluster = self.cluster
        assert cluster.manager is not None
        for process in (*cluster.workers, cluster.manager, self.client):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        if cluster.manager.poll() is not None:
            _close(cluster.manager)
            cluster.start_manager()
        for number, worker in enumerate([*cluster.workers]):
            if worker.poll() is not None:
                _close(worker)
                cluster.workers.remove(worker)
                cluster.start_worker() if number == 0 else self.start_far()
                if number == 0:
                    cluster.workers.insert(0, cluster.workers.pop())
        if self.client.poll() is not None:
            assert self.client.returncode in (0, -signal.SIGKILL), self.said()
        if self.client.poll() is not None and not (self.results / "table").exists():
            self.start_client()

    def done(self) -> int:
        return len(list(self.results.iterdir()))

    def wait_done(self, many: int, what: str) -> None:
        """Until so many calls are done, or all, or the client has ended."""
        table = self.results / "table"
        wait_until(lambda: self.done() >= many or table.exists() or self.client.poll() is not None, f"{what}\n{self.said()}", 240.0)

    def table(self) -> str:
        def there() -> bool:
            self.put_back()
            return (self.results / "table").exists()

        wait_until(there, "the table", 300.0)
        return (self.results / "table").read_text()

    def close(self) -> None:
        self.wire.close()
        self.client.kill()
        self.client.wait()
        self.cluster.stop()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def screened(folder: Path, dice: Random | None = None) -> str:
    folder.mkdir()
    scene = Scene(folder)
    pulled: list[str] = []
    try:
        if dice is not None:
            for _ in range(dice.randint(3, 6)):
                scene.wait_done(scene.done() + dice.randint(1, 12), f"progress after {pulled}")
                time.sleep(dice.random() * 0.3)
                if (scene.results / "table").exists():
                    break
                what = dice.choice(PLUGS)
                pulled.append(f"{what}@{scene.done()}")
                scene.pull(what, dice)
                scene.put_back()
        table = scene.table()
        assert "Traceback" not in scene.cluster.log, scene.cluster.log
        assert "Error" not in scene.said(), scene.said()
        print(f"\n{' '.join(pulled) or 'undisturbed'}")
        return table
    finally:
        scene.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("rdkit")
    pytest.importorskip("sklearn")
    yield screened(tmp_path_factory.mktemp("whole") / "scene")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
def test_the_table_is_the_same(undisturbed: str, tmp_path: Path, seed: int) -> None:
    assert screened(tmp_path / "scene", Random(seed)) == undisturbed

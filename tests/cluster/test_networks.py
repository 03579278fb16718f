"""A worker beyond a network that is cut, slow, lossy or behind a translator of addresses; real processes.

Three network namespaces of this machine: the manager's, the worker's, and between them one that carries the packets
(``relay.py``).  Needs root and ``ip``.  The exact figures are in what ``make networks`` prints; what is asserted here
holds on any machine.  ``LFM_NETWORKS=full`` takes the product's own lease, and the cuts of 10 and 30 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lfm.run import ConnectionFile
from lfm.testing import wait_until

FULL = os.environ.get("LFM_NETWORKS", "") == "full"
LEASE = 60.0 if FULL else 8.0
CUTS = [3.0, 10.0, 30.0] if FULL else [3.0]
PATIENCE = 240.0  # seconds for what must happen, on whatever machine
MANAGER, WORKER, OUTSIDE, NOBODY = "10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.99"
RELAY = Path(__file__).parent / "relay.py"
at_length = pytest.mark.skipif(not FULL, reason="takes minutes: make networks")
pytestmark = [pytest.mark.networks, pytest.mark.timeout(1200)]

# Submits a call for each line, "TAG SECONDS", and writes "TAG VALUE TIME WORKER" when it is over.  With a file's name for
# SECONDS it goes on until that is there.
CLIENT = """
    import os, sys, threading, time
    import lfm

    def work(tag, seconds):
        import os, time
        while isinstance(seconds, str) and not os.path.exists(seconds):
            time.sleep(0.05)
        time.sleep(0.0 if isinstance(seconds, str) else seconds)
        return tag

    def over(future):
        os.write(1, f"{future.result()} {time.monotonic()} {future.attempts[-1].worker}\\n".encode())

    with lfm.Executor(sys.argv[1], session="networks") as ex:
        small = ex.options(memory="40MB", cores=0.25)
        for line in sys.stdin:
            tag, seconds = line.split()
            small.submit(work, tag, seconds if "/" in seconds else float(seconds)).add_done_callback(lambda f: threading.Thread(target=over, args=(f,)).start())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Place:
    """A namespace of our own, and what runs in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, log: Path, environ: dict[str, str], pipes: bool = False) -> subprocess.Popen[bytes]:
        with log.open("ab") as said:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], env=environ, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if pipes else said, stderr=said, bufsize=0,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        self.processes.remove(process)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        for process in [*self.processes]:
            self.stop(process)
        ip("netns", "del", self.name)


class Net:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mark = f"lfm{os.getpid() % 100_000}"
        self.places: list[Place] = []
        self.near, self.between, self.far = (self.place(f"{mark}{letter}") for letter in "mrw")
        for place, device, address in ((self.near, "m0", MANAGER), (self.far, "w0", WORKER)):
            ip("link", "add", f"to{device}", "netns", self.between.name, "type", "veth", "peer", "name", device, "netns", place.name)
            ip("-n", self.between.name, "link", "set", f"to{device}", "up")
            ip("-n", place.name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", place.name, "link", "set", device, "up")
            code = f"import sys; sys.path.insert(0, {str(RELAY.parent)!r}); import relay; relay.plain({device!r})"
            subprocess.run(["ip", "netns", "exec", place.name, sys.executable, "-c", code], check=True)
        home = folder / "home"
        self.environ = {
            **os.environ, "LFM_HOME": str(home), "LFM_CACHE": str(folder / "cache"), "TMPDIR": str(folder), "LFM_SCRATCH": str(folder),
        }
        self.environ.pop("LFM_RUN", None)
        self.run, self.log = home / "runs" / "net", folder / "said"
        self.relay = self.between.start(sys.executable, str(RELAY), "tow0", "tom0", log=self.log, environ=self.environ, pipes=True)
        assert self.relay.stdout is not None and self.relay.stdout.readline() == b"ready\n"
        advertise = [word for address in (NOBODY, MANAGER) for word in ("--advertise", address)]
        self.lfm(self.near, "manager", "start", "--name", "net", "--host", MANAGER, *advertise, "--lease", f"{LEASE}s", "--stdin-eof")
        wait_until(lambda: (self.run / "viewer.json").exists(), "the manager", PATIENCE)
        (folder / "client.py").write_text(textwrap.dedent(CLIENT))
        self.answers: dict[str, tuple[float, str]] = {}
        self.number = 0
        self.client = self.near.start(
            sys.executable, str(folder / "client.py"), str(self.run), log=self.log, environ=self.environ, pipes=True
        )
        assert self.client.stdout is not None
        os.set_blocking(self.client.stdout.fileno(), False)
        self._rest = b""

    def place(self, name: str) -> Place:
        made = Place(name)
        self.places.append(made)
        return made

    def lfm(self, place: Place, *arguments: str) -> subprocess.Popen[bytes]:
        return place.start(sys.executable, "-P", "-m", "lfm", *arguments, log=self.log, environ=self.environ)

    def worker(self, place: Place, name: str, *by: str) -> subprocess.Popen[bytes]:
        return place.start(
            *by, sys.executable, "-P", "-m", "lfm", "worker", "start", "--run", str(self.run), "--stdin-eof", "--cores", "1",
            "--memory", "500MB", "--name", name, log=self.log, environ=self.environ,
        )  # fmt: skip

    def say(self, command: str) -> None:
        """To the network."""
        assert self.relay.stdin is not None and self.relay.stdout is not None
        self.relay.stdin.write(f"{command}\n".encode())
        assert self.relay.stdout.readline() == b"done\n"

    def submit(self, seconds: float | Path, count: int = 1) -> list[str]:
        tags = [f"t{self.number + n}" for n in range(count)]
        self.number += count
        assert self.client.stdin is not None
        self.client.stdin.write("".join(f"{tag} {seconds}\n" for tag in tags).encode())
        return tags

    def hear(self) -> dict[str, tuple[float, str]]:
        assert self.client.stdout is not None
        assert self.client.poll() is None, self.log.read_text()[-3000:]
        *lines, self._rest = (self._rest + (self.client.stdout.read() or b"")).split(b"\n")
        for line in lines:
            tag, when, worker = line.decode().split()
            assert tag not in self.answers, f"{tag} was answered twice"
            self.answers[tag] = (float(when), worker)
        return self.answers

    def wait(self, done: Callable[[], object], what: str) -> None:
        wait_until(done, f"{what}\n{self.log.read_text()[-2000:]}", PATIENCE)

    def wait_for(self, tags: list[str]) -> None:
        self.wait(lambda: self.hear().keys() >= set(tags), f"{tags}; {self.answers}")

    def workers(self) -> dict[str, str]:
        """Their states."""
        environ = {**self.environ, "LFM_RUN": str(self.run)}
        shown = subprocess.run(
            ["ip", "netns", "exec", self.near.name, sys.executable, "-m", "lfm", "worker", "list", "--json"], env=environ,
            capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return {worker["name"]: worker["state"] for worker in json.loads(shown.stdout)["workers"]}

    def close(self) -> None:
        for place in (self.far, self.near, self.between):
            place.close()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip: apt-get install iproute2")
    try:
        ip("netns", "add", probe := f"lfmprobe{os.getpid()}")
        ip("netns", "del", probe)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("net")
    made = Net(folder)
    try:
        made.worker(made.far, "far")
        made.wait_for(made.submit(0.0))  # through the second address: nobody is at the first
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("which", ["both", "up", "down"])
@pytest.mark.parametrize("seconds", CUTS)
def test_a_cut_delays_results_only_as_long_as_it_lasts(net: Net, seconds: float, which: str) -> None:
    if seconds >= LEASE:
        pytest.skip("longer than the lease")
    before = net.submit(0.0)
    net.wait_for(before)
    running = net.submit(seconds / 2, 2)  # end while nothing gets through
    later = net.submit(0.1, 4)
    # to ask takes longer than the calls on a slow machine: then they are over already
    net.wait(lambda: "busy" in net.workers().values() or net.hear().keys() >= set(running), "the calls to be there")
    net.say(f"cut {which}")
    time.sleep(seconds)
    net.say("cut none")
    healed = time.monotonic()
    net.wait_for(running + later)
    late = [net.answers[tag][0] - healed for tag in running]
    print(f"\ncut of {seconds:g} s, {which}: results {max(late):.2f} s after it healed, at the latest")
    assert not FULL or max(late) <= 5.0, "promised for a machine that is not too busy"


def test_five_of_a_hundred_packets_are_lost(net: Net) -> None:
    net.say("loss 0.05")
    began = time.monotonic()
    net.wait_for(net.submit(0.0, 100))
    print(f"\n5 % of the packets lost: 100 calls in {time.monotonic() - began:.2f} s")
    net.say("loss 0")


def test_a_long_way(net: Net) -> None:
    net.say("delay 0.05")
    began = time.monotonic()
    net.wait_for(net.submit(0.0, 100))
    print(f"\n100 ms there and back: 100 calls in {time.monotonic() - began:.2f} s")
    net.say("delay 0")


def test_a_worker_that_is_cut_off_for_its_lease_is_lost_and_its_calls_run_elsewhere(net: Net) -> None:
    running = net.submit(net.folder / "gate", 2)
    net.wait(lambda: net.workers().get("far") == "busy", "the calls to be there")
    net.say("cut both")
    (net.folder / "gate").touch()
    began = time.monotonic()
    near = net.worker(net.near, "near")
    net.wait_for(running)
    print(f"\nlost for good: its calls were answered {time.monotonic() - began:.2f} s after the cut, lease {LEASE:g} s")
    assert {net.answers[tag][1] for tag in running} == {"near"}
    net.say("cut none")
    net.wait(lambda: net.workers().keys() == {"far", "near"}, "it to come back")
    net.near.stop(near)
    net.wait(lambda: net.workers().keys() == {"far"}, "the other one to go")
    net.wait_for(net.submit(0.0, 4))


@at_length
def test_what_comes_after_the_lease_is_taken_if_nobody_has_finished_it(net: Net) -> None:
    (tag,) = net.submit(70.0)
    net.wait(lambda: net.workers().get("far") == "busy", "the call to be there")
    net.say("cut both")
    began = time.monotonic()
    net.wait(lambda: "far" not in net.workers(), "it to be given up")
    noticed = time.monotonic() - began
    time.sleep(max(0.0, began + 1.5 * LEASE - time.monotonic()))
    net.say("cut none")
    healed = time.monotonic()
    net.wait_for([tag])
    late = net.answers[tag][0] - healed
    print(f"\ncut of {1.5 * LEASE:g} s: given up after {noticed:.1f} s, its late result taken {late:.2f} s after it healed")
    assert noticed > 0.9 * LEASE and late < 30.0, "it was run again"


@at_length
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_worker_that_is_killed(net: Net, elsewhere: bool) -> None:
    """At once where its process can be seen; on another node its kernel says goodbye for it."""
    place = net.far if elsewhere else net.near
    other = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh") if elsewhere else ()
    process = net.worker(place, "mortal", *other)
    net.wait(lambda: "mortal" in net.workers(), "it to come")
    running = net.submit(5.0, 8)  # four on each
    net.wait(lambda: net.workers().get("mortal") == "busy", "the calls to be there")
    process.kill()
    began = time.monotonic()
    net.wait(lambda: "mortal" not in net.workers(), "it to be given up")
    print(f"\nkilled {'on another node' if elsewhere else 'on this machine'}: given up after {time.monotonic() - began:.1f} s")
    net.wait_for(running)


def test_behind_a_translator_of_addresses(net: Net) -> None:
    """The last: its connections begin anew, from an address that nobody could dial."""
    net.say(f"nat {WORKER} {OUTSIDE}")
    net.worker(net.far, "behind")
    net.wait(lambda: "behind" in net.workers(), "it to come")
    net.wait_for(net.submit(0.1, 10))
    assert len(ConnectionFile.read(net.run / "worker.json").addresses) == 2

"""A private Slurm and a private sshd for the tests: own configuration, keys, sockets, ports; no systemd.

Skipped, with the reason, where the tools are not installed or we are not root.  All that is written lies in a
temporary directory of pytest's; all that is started is ended by its process id.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CPUS, MEMORY_MB, GPUS = 2, 2000, 2  # of each node; CPUs no more than the machine has
KILL_WAIT = 5
CGROUPS = Path("/sys/fs/cgroup")


def wait(found: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@dataclass
class Slurm:
    """Two nodes on this machine."""

    root: Path
    constrained: bool  # jobs are bound to their CPUs and memory by cgroups, as on real clusters
    environ: dict[str, str]

    def run(self, *command: str | Path, **environ: str) -> str:
        done = subprocess.run(
            [str(part) for part in command], env=self.environ | environ, capture_output=True, text=True, timeout=60,
            cwd=self.root, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Empty once it has ended and is forgotten."""
        shown = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], env=self.environ, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        return shown.stdout.strip()

    def wait_ended(self, job: str) -> None:
        wait(lambda: self.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), f"job {job} to end", 120)


def _cgroup_v1() -> bool:
    """Whether jobs can be contained here: the version 1 hierarchies that Slurm uses are ours to write."""
    return all(os.access(CGROUPS / name, os.W_OK) and (CGROUPS / name / "tasks").exists() for name in ("freezer", "memory", "cpuset"))


def _configure(root: Path, constrained: bool) -> None:
    controller, *nodes = free_ports(3)
    host = socket.gethostname().split(".")[0]
    for part in ("etc", "run", "log", "state", "munge", "spool/node1", "spool/node2", "dev"):
        (root / part).mkdir(parents=True)
    (root / "munge").chmod(0o700)
    for n in range(GPUS):
        (root / "dev" / f"nvidia{n}").symlink_to("/dev/null")  # a device must be one; nothing opens it
    (root / "etc" / "gres.conf").write_text(
        f"NodeName=node[1-2] Name=gpu Flags=nvidia_gpu_env File={root}/dev/nvidia[0-{GPUS - 1}]\n"
    )
    constrain = "yes" if constrained else "no"
    (root / "etc" / "cgroup.conf").write_text(
        f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={CGROUPS}\nCgroupAutomount=no\n"
        f"ConstrainCores={constrain}\nConstrainRAMSpace={constrain}\n"
    )
    settings = {
        "ClusterName": "lfmtest", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmctldPort": controller, "SlurmUser": "root",
        "SlurmdUser": "root", "AuthType": "auth/munge", "AuthInfo": f"socket={root}/run/munge.sock",
        "CryptoType": "crypto/munge", "StateSaveLocation": f"{root}/state", "SlurmdSpoolDir": f"{root}/spool/%n",
        "SlurmctldPidFile": f"{root}/run/slurmctld.pid", "SlurmdPidFile": f"{root}/run/slurmd-%n.pid",
        "SlurmctldLogFile": f"{root}/log/slurmctld.log", "SlurmdLogFile": f"{root}/log/slurmd-%n.log",
        # linuxproc follows parents, and what lost its parent escapes a kill: no test of ends is true with it
        "ProctrackType": "proctrack/cgroup" if constrained else "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup,task/affinity" if constrained else "task/none",
        "JobAcctGatherType": "jobacct_gather/none", "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none", "MpiDefault": "none", "SwitchType": "switch/none", "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,sched_min_interval=100000,bf_interval=1",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory", "SlurmdParameters": "config_overrides",
        "ReturnToService": 2, "MailProg": "/bin/true", "KillWait": KILL_WAIT, "GresTypes": "gpu",
    }  # fmt: skip
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [
        f"NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory={MEMORY_MB} "
        f"TmpDisk=100 Gres=gpu:{GPUS} State=UNKNOWN"
        for n, port in enumerate(nodes, 1)
    ]
    lines.append("PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE DefaultTime=60 State=UP")
    (root / "etc" / "slurm.conf").write_text("\n".join(lines) + "\n")


def _start(root: Path, environ: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """munged, the controller, two node daemons; all in the foreground, so that they are our children."""
    conf = str(root / "etc" / "slurm.conf")
    (root / "munge" / "munge.key").write_bytes(os.urandom(128))
    (root / "munge" / "munge.key").chmod(0o400)
    sock = root / "run" / "munge.sock"
    munged = [
        "munged", "--foreground", "--force", f"--key-file={root}/munge/munge.key", f"--socket={sock}",
        f"--pid-file={root}/run/munged.pid", f"--log-file={root}/log/munged.log", f"--seed-file={root}/munge/seed",
    ]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []

    def begin(name: str, command: list[str]) -> None:
        with (root / "log" / f"{name}.out").open("wb") as log:
            daemons.append(subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root))

    begin("munged", munged)
    wait(sock.exists, "munge")
    begin("slurmctld", ["slurmctld", "-D", "-f", conf])
    for node in ("node1", "node2"):
        begin(node, ["slurmd", "-D", "-f", conf, "-N", node])
    return daemons


def _end(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in reversed(daemons):
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _step_daemons(conf: Path) -> list[int]:
    """Processes that a node daemon left running for a job of this very cluster."""
    wanted = f"SLURM_CONF={conf}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            step = entry.name.isdigit() and (entry / "comm").read_text().strip() == "slurmstepd"
            if step and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("a private Slurm needs root")
    root = tmp_path_factory.mktemp("slurm")
    constrained = _cgroup_v1() and (os.cpu_count() or 1) >= CPUS
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LFM_"))}
    environ |= {"SLURM_CONF": str(root / "etc" / "slurm.conf"), "PATH": _path()}
    _configure(root, constrained)
    daemons = _start(root, environ)
    made = Slurm(root, constrained, environ)
    try:
        idle = ["sinfo", "--noheader", "--Node", "--states", "idle", "--format", "%N"]
        wait(
            lambda: subprocess.run(idle, env=environ, capture_output=True, text=True, check=False).stdout.split() == ["node1", "node2"],
            f"both nodes; see {root}/log",
        )
        yield made
    finally:
        subprocess.run(["scancel", "--state=RUNNING,PENDING", "--user=root"], env=environ, capture_output=True, timeout=30, check=False)
        with suppress(AssertionError):
            wait(lambda: not _step_daemons(root / "etc" / "slurm.conf"), "the jobs", 30)
        _end(daemons)
        for pid in _step_daemons(root / "etc" / "slurm.conf"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command that reaches this machine, as ``here``, through an sshd of our own."""
    sshd = shutil.which("sshd", path=_path())
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("no sshd: apt-get install openssh-server")
    if os.getuid() != 0:
        pytest.skip("a private sshd for this user needs root")
    root = tmp_path_factory.mktemp("ssh")
    for key in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / key], check=True)
    [port] = free_ports(1)
    privileges = Path("/run/sshd")
    made = not privileges.exists()
    privileges.mkdir(mode=0o755, exist_ok=True)
    settings = [
        "ListenAddress=127.0.0.1", f"Port={port}", f"HostKey={root}/host", f"AuthorizedKeysFile={root}/id.pub", "StrictModes=no",
        "UsePAM=no", "PasswordAuthentication=no", "PermitRootLogin=prohibit-password", f"PidFile={root}/pid", "PermitUserEnvironment=no",
    ]  # fmt: skip
    with (root / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [sshd, "-D", "-e", "-f", "/dev/null", *(part for s in settings for part in ("-o", s))],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    (root / "config").write_text(
        f"Host here\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {root}/id\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {root}/known\n StrictHostKeyChecking accept-new\n BatchMode yes\n LogLevel ERROR\n"
    )
    command = f"ssh -F {root}/config"
    try:
        wait(lambda: subprocess.run([*command.split(), "here", "true"], capture_output=True, check=False).returncode == 0, "sshd", 30)
        yield command
    finally:
        daemon.terminate()
        daemon.wait(20)
        if made:
            with suppress(OSError):
                privileges.rmdir()

"""What of this node is really ours: cores, memory, disk, GPUs, time.

Every source gives an upper bound and the smallest wins: the affinity, every cgroup from ours up to the root
(a limit is often on an ancestor), resource limits, the batch system, the node itself.  Keeps what each source
said, so that ``lfm worker detect`` can show how a number was found.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lfm_worker.shell.allotment import Finding, Job, job, number, time_left
from lfm_worker.shell.places import scratch

NO_LIMIT = 1 << 60  # cgroup v1 writes a number like this for "none"
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")


@dataclass(frozen=True, slots=True)
class Node:
    """Where to look: the real machine, or a test's picture of one."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Path = Path("/")
    host: str = field(default_factory=socket.gethostname)
    affinity: tuple[int, ...] = field(default_factory=lambda: tuple(sorted(os.sched_getaffinity(0))))
    cpus: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory: int = field(default_factory=lambda: os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    rlimits: tuple[tuple[str, int], ...] = field(default_factory=lambda: _rlimits())
    commands: bool = True  # may batch systems' commands be run

    def read(self, path: str) -> str | None:
        if not path:
            return None
        try:
            return (self.root / path.lstrip("/")).read_text().strip()
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Bound:
    """The smallest of what was found, and all that was found."""

    value: float
    findings: tuple[Finding, ...]

    @property
    def source(self) -> str:
        return min(self.findings, key=lambda f: f.value).source

    @classmethod
    def of(cls, findings: list[Finding]) -> Bound:
        return cls(min(f.value for f in findings), tuple(findings))


@dataclass(frozen=True, slots=True)
class Allotment:
    """What is ours on this node."""

    job: Job
    cores: Bound
    cpus: tuple[int, ...]  # that we may run on
    memory: Bound
    gpus: tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them
    gpus_by: str
    time_left: Bound | None  # seconds
    scratch: Path
    scratch_by: str
    disk: Bound


def detect(node: Node | None = None, work_dir: Path | None = None) -> Allotment:
    """Ask every source."""
    node = node or Node()
    found = job(node.environ, time.time(), node.host, node.read)
    place, place_by = (work_dir, "--work-dir") if work_dir is not None else scratch(node.environ)
    gpus, gpus_by = _gpus(node, found)
    return Allotment(
        found, Bound.of(_cores(node, found)), node.affinity, Bound.of(_memory(node, found)), gpus, gpus_by,
        _time_left(node, found), place, place_by, Bound.of([_free_disk(place)]),
    )


def _cores(node: Node, found: Job) -> list[Finding]:
    findings = [Finding(node.cpus, "CPUs of the node"), Finding(len(node.affinity), "affinity"), *found.cores]
    for directory in _cgroups(node, "cpu"):
        quota = (node.read(f"{directory}/cpu.max") or "").split()
        if len(quota) == 2 and quota[0].isdigit():
            findings.append(Finding(int(quota[0]) / int(quota[1]), f"{directory}/cpu.max"))
        micros, period = number(node.read(f"{directory}/cpu.cfs_quota_us")), number(node.read(f"{directory}/cpu.cfs_period_us"))
        if micros and period:
            findings.append(Finding(micros / period, f"{directory}/cpu.cfs_quota_us"))
    return findings


def _memory(node: Node, found: Job) -> list[Finding]:
    findings = [Finding(node.memory, "memory of the node"), *found.memory]
    for directory in _cgroups(node, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            value = number(node.read(f"{directory}/{name}"))
            if value and value < NO_LIMIT:
                findings.append(Finding(value, f"{directory}/{name}"))
    if found.sharers > 1:  # one worker each; whatever says how much it is means all of them together
        least = min(findings, key=lambda f: f.value)
        findings.append(Finding(least.value // found.sharers, f"{least.source} / {found.sharers} tasks"))
    return findings + [Finding(value, name) for name, value in node.rlimits]


def _cgroups(node: Node, controller: str) -> Iterator[str]:
    """Directories of our cgroup and all above it, version 1 and 2."""
    seen = set()
    for line in (node.read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        names = (controller, controllers) if controllers else ("", "unified")
        # In a container our path may lead outside of what is mounted: then the mount's root is ours.
        for name in names:
            for part in (path, *(str(p) for p in Path(path).parents)):
                directory = f"/sys/fs/cgroup/{name}".rstrip("/") + part.rstrip("/")
                if directory not in seen:
                    seen.add(directory)
                    yield directory


def _rlimits() -> tuple[tuple[str, int], ...]:
    limits = []
    for name in ("RLIMIT_AS", "RLIMIT_RSS", "RLIMIT_DATA"):
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft not in (resource.RLIM_INFINITY, -1):
            limits.append((name, soft))
    return tuple(limits)


def _gpus(node: Node, found: Job) -> tuple[tuple[str, ...], str]:
    for name in GPU_VARIABLES:
        if (value := node.environ.get(name)) is not None:
            return tuple(d for d in value.split(",") if d not in ("", "-1", "NoDevFiles", "void")), f"${name}"
    if found.gpus is not None:
        return found.gpus, found.gpus_by
    if found.system in ("slurm", "pbs", "lsf", "htcondor", "flux"):
        return (), f"{found.system} gave none"
    devices = sorted(int(p.name[6:]) for p in (node.root / "dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
    return tuple(str(d) for d in devices), "/dev/nvidia*"


def _time_left(node: Node, found: Job) -> Bound | None:
    findings = list(found.time_left)
    for command in found.ask if node.commands else ():
        if (path := shutil.which(command[0])) is None:
            continue
        with suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=15, check=False)
            if said.returncode == 0 and (left := time_left(command, said.stdout)) is not None:
                findings.append(Finding(left, " ".join(command)))
    return Bound.of(findings) if findings else None


def _free_disk(place: Path) -> Finding:
    while not place.exists():
        place = place.parent
    return Finding(shutil.disk_usage(place).free, f"free in {place}")


def margin(memory: float) -> int:
    """Memory that is kept for the worker itself and its idle interpreters: not offered to calls."""
    return int(min(max(256 << 20, memory * 0.05), memory * 0.25))

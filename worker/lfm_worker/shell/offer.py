"""From what is ours on this node and what the person at the command line wants to the worker's settings."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import lfm
from lfm.protocol.resources import Resources, format_size
from lfm_worker.core.worker import Settings
from lfm_worker.shell.detect import Allotment, margin

DRAIN_SHARE, DRAIN_MOST = 0.1, 120.0  # of the time left, and seconds: when to take no more before the end
DISK_SHARE = 0.9  # of what is free
CACHE_SHARE = 0.5  # of what is offered as disk


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says.  None: what was found."""

    cores: int | None = None
    memory: int | None = None
    disk: int | None = None
    gpus: int | None = None
    time_left: float | None = None  # seconds
    idle_timeout: float | None = None
    cache: int | None = None
    pin: bool = True


def settings(found: Allotment, wanted: Wanted) -> tuple[Settings, list[str]]:
    """The worker's settings, and what a person should know about them."""
    warnings = []
    cores = wanted.cores or max(1, int(found.cores.value))
    if cores > max(1.0, found.cores.value) + 1e-6:
        warnings.append(f"offers {cores} cores, but only {found.cores.value:g} are ours ({found.cores.source})")
    memory = wanted.memory or int(found.memory.value) - margin(found.memory.value)
    if memory > found.memory.value:
        warnings.append(
            f"offers {format_size(memory)} of memory, but only {format_size(found.memory.value)} are ours ({found.memory.source})"
        )
    disk = wanted.disk or int(found.disk.value * DISK_SHARE)
    gpus = found.gpus if wanted.gpus is None else found.gpus[: wanted.gpus]
    if wanted.gpus is not None and wanted.gpus > len(gpus):
        warnings.append(f"offers {len(gpus)} GPUs instead of {wanted.gpus}: there are no more ({found.gpus_by})")
    times = [t for t in (wanted.time_left, found.time_left.value if found.time_left else None) if t is not None]
    left = min(times, default=None)
    return Settings(
        offer=Resources(float(cores), memory, disk, len(gpus), left),
        cpus=found.cpus if wanted.pin and cores == len(found.cpus) else (),
        gpu_devices=gpus,
        cache=wanted.cache or int(disk * CACHE_SHARE),
        end=None if left is None else time.monotonic() + left,
        margin=min(DRAIN_MOST, DRAIN_SHARE * left) if left is not None else 0.0,
        idle_timeout=wanted.idle_timeout,
    ), warnings


def labels(found: Allotment, given: Mapping[str, str]) -> dict[str, str]:
    """What a hello says about the node, beside its amounts; ``given``: what its user adds."""
    said = {
        "machine": platform.machine(), "libc": " ".join(platform.libc_ver()), "python": platform.python_version(),
        "version": lfm.__version__, "system": sys.platform, "kernel": platform.release(),
    }
    if found.job.system:
        said |= {"batch": found.job.system, "job": found.job.id}
    if node := os.environ.get("SLURMD_NODENAME"):
        said["node"] = node
    return {**given, **said}

"""What one call used, as its monitor measured it.  Bytes and seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """One call's whole process tree.

    ``memory`` is the peak; where it could not be known exactly it is the upper end of
    ``memory_low .. memory``, and ``memory_by`` says how it was found: ``cgroup``, ``self`` (the call read
    its own figures at its end), ``poll`` (the tree was watched), or ``none``.
    ``cores`` is the mean (CPU seconds / wall), ``cores_peak`` the largest over any polling interval.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    cores: float = 0.0
    cores_peak: float = 0.0
    memory: int = 0
    memory_low: int = 0
    memory_by: str = "none"
    disk: int = 0
    read: int = 0
    written: int = 0
    processes: int = 1
    threads: int = 1
    gpu_memory: int = 0

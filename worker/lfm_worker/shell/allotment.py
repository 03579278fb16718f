"""What batch systems say about a job in its environment variables and files.

Each function reads one system's words and gives findings: upper bounds with their source.  Nothing here
decides; ``detect`` takes the smallest of all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MB = 1 << 20  # what batch systems call a megabyte


@dataclass(frozen=True, slots=True)
class Finding:
    """An amount, and who says so."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Job:
    """The job that this process runs in, as its batch system describes it."""

    system: str  # "slurm", "pbs", ...; "" where there is none
    id: str = ""
    cores: tuple[Finding, ...] = ()
    memory: tuple[Finding, ...] = ()
    gpus: tuple[str, ...] | None = None  # None: it does not say
    gpus_by: str = ""
    sharers: int = 1  # processes like this one that its memory here is for
    time_left: tuple[Finding, ...] = ()
    ask: tuple[tuple[str, ...], ...] = ()  # commands that would tell the time left; see ``time_left``


Environ = Mapping[str, str]
Reader = Callable[[str], str | None]  # a file's text


def number(text: str | None) -> int | None:
    found = re.match(r"\s*(\d+)", text or "")
    return int(found[1]) if found else None


def findings(environ: Environ, names: tuple[str, ...], scale: int = 1) -> tuple[Finding, ...]:
    """The first of the variables that holds a positive number."""
    for name in names:
        if value := number(environ.get(name)):
            return (Finding(value * scale, f"${name}"),)
    return ()


def clock(text: str) -> float | None:
    """Seconds of ``[days-][[hours:]minutes:]seconds``; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(n or 0) for n in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def slurm(environ: Environ, now: float) -> Job:
    in_step = "SLURM_STEP_ID" in environ and environ["SLURM_STEP_ID"] not in ("4294967291", "4294967290", "batch")
    # In a step the task's share counts, which is absent without -c; in a batch script all that is on this node.
    names = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE") if in_step else ("SLURM_CPUS_ON_NODE",)
    cores = findings(environ, names)
    memory = findings(environ, ("SLURM_MEM_PER_NODE",), MB)
    per_cpu = number(environ.get("SLURM_MEM_PER_CPU"))
    if not memory and per_cpu and (here := number(environ.get("SLURM_CPUS_ON_NODE"))):
        memory = (Finding(per_cpu * here * MB, "$SLURM_MEM_PER_CPU x $SLURM_CPUS_ON_NODE"),)
    tasks = _tasks_here(environ) if in_step else 1
    if "SLURM_CPUS_PER_TASK" not in environ:
        cores = tuple(Finding(max(1, f.value // tasks), f"{f.source} / {tasks} tasks") for f in cores) if tasks > 1 else cores
    devices = next((n for n in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS") if environ.get(n)), None)
    ends = number(environ.get("SLURM_JOB_END_TIME"))
    job, task, restarts = environ["SLURM_JOB_ID"], environ.get("SLURM_ARRAY_TASK_ID"), environ.get("SLURM_RESTART_COUNT")
    array = environ.get("SLURM_ARRAY_JOB_ID")
    name = (f"{array}_{task}" if array and task else job) + (f"r{restarts}" if restarts not in (None, "", "0") else "")
    return Job(
        "slurm", name, cores, memory,
        gpus=tuple(environ[devices].split(",")) if devices else None, gpus_by=f"${devices}" if devices else "",
        sharers=tasks, time_left=(Finding(ends - now, "$SLURM_JOB_END_TIME"),) if ends else (),
        ask=() if ends else (("squeue", "--noheader", "--jobs", job, "--format", "%L"),),
    )


def _tasks_here(environ: Environ) -> int:
    """Tasks of this step on this node: the entry of our node in a list like ``4(x2),3``."""
    counts: list[int] = []
    for entry in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        if found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry):
            counts += [int(found[1])] * int(found[2] or 1)
    node = number(environ.get("SLURM_NODEID")) or 0
    return counts[node] if node < len(counts) else 1


def pbs(environ: Environ, now: float) -> Job:
    left = findings(environ, ("PBS_WALLTIME",))  # Torque: seconds from the job's start; the worker starts with it
    return Job(
        "pbs", environ["PBS_JOBID"], findings(environ, ("NCPUS", "PBS_NUM_PPN", "PBS_NCPUS")),
        time_left=left, ask=() if left else (("qstat", "-f", environ["PBS_JOBID"]),),
    )


def lsf(environ: Environ, now: float, host: str = "") -> Job:
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    here = [n for h, n in zip(words[::2], words[1::2], strict=False) if h.split(".")[0] == host.split(".")[0]]
    cores = (Finding(int(here[0]), "$LSB_MCPU_HOSTS"),) if here and here[0].isdigit() else ()
    index = environ.get("LSB_JOBINDEX", "0")
    return Job(
        "lsf", environ["LSB_JOBID"] + (f"[{index}]" if index not in ("", "0") else ""),
        cores or findings(environ, ("LSB_DJOB_NUMPROC",)),
        ask=(("bjobs", "-noheader", "-o", "time_left", environ["LSB_JOBID"]),),
    )


def htcondor(environ: Environ, now: float, read: Reader) -> Job:
    machine, job = _ad(read(environ.get("_CONDOR_MACHINE_AD", ""))), _ad(read(environ["_CONDOR_JOB_AD"]))
    cores, memory = number(machine.get("cpus")), number(machine.get("memory"))
    assigned = machine.get("assignedgpus")
    identity = ".".join(n for n in (job.get("clusterid"), job.get("procid")) if n)
    started, allowed = number(job.get("jobcurrentstartdate")), number(job.get("allowedjobduration"))
    return Job(
        "htcondor", identity,
        (Finding(cores, "machine ad: Cpus"),) if cores else (),
        (Finding(memory * MB, "machine ad: Memory"),) if memory else (),
        gpus=tuple(g for g in re.split(r"[,\s]+", assigned) if g) if assigned is not None else None,
        gpus_by="machine ad: AssignedGPUs",
        time_left=(Finding(started + allowed - now, "job ad: AllowedJobDuration"),) if started and allowed else (),
    )


def _ad(text: str | None) -> dict[str, str]:
    """A ClassAd as HTCondor writes it for jobs: ``Name = value`` lines; names know no case."""
    pairs = (line.partition("=") for line in (text or "").splitlines())
    return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def flux(environ: Environ, now: float) -> Job:
    return Job("flux", environ["FLUX_JOB_ID"], ask=(("flux", "job", "timeleft"),))


def sge(environ: Environ, now: float) -> Job:
    task = environ.get("SGE_TASK_ID", "undefined")
    identity = environ.get("JOB_ID", "") + (f".{task}" if task != "undefined" else "")
    return Job("sge", identity, findings(environ, ("NSLOTS",)))


def kubernetes(environ: Environ, now: float) -> Job:
    """All that counts there is in the cgroup; the pod's name is the host's."""
    return Job("kubernetes", environ.get("HOSTNAME", ""))


def job(environ: Environ, now: float, host: str, read: Reader) -> Job:
    """The innermost batch system that this process runs in; ``now`` is seconds since the epoch."""
    if environ.get("FLUX_JOB_ID"):  # may run inside a Slurm job, whose variables it inherits
        return flux(environ, now)
    if environ.get("SLURM_JOB_ID"):
        return slurm(environ, now)
    if environ.get("PBS_JOBID"):
        return pbs(environ, now)
    if environ.get("LSB_JOBID"):
        return lsf(environ, now, host)
    if environ.get("_CONDOR_JOB_AD"):
        return htcondor(environ, now, read)
    if environ.get("SGE_TASK_ID") or environ.get("PE_HOSTFILE"):
        return sge(environ, now)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return kubernetes(environ, now)
    return Job("")


def time_left(command: tuple[str, ...], output: str) -> float | None:
    """Seconds that are left, read from what a batch system's own command says."""
    text = output.strip()
    match command[0]:
        case "squeue":
            return clock(text)
        case "flux":
            return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
        case "bjobs":
            found = re.match(r"(\d+):(\d+)", text)  # hours:minutes, then a letter
            return int(found[1]) * 3600.0 + int(found[2]) * 60.0 if found else None
        case "qstat":
            total = re.search(r"Resource_List\.walltime = ([\d:]+)", text)
            used = re.search(r"resources_used\.walltime = ([\d:]+)", text)
            all_of_it = clock(total[1]) if total else None
            return None if all_of_it is None else all_of_it - ((clock(used[1]) if used else None) or 0.0)
        case _:
            return None

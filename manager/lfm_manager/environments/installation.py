"""Kind "python": what is installed in a venv, a pyenv or a system's Python; its packages made side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lfm.function.plan import Distribution, Interpreter, Plan
from lfm_manager.environments import archive, distributions, interpreter
from lfm_manager.environments.assembled import Assembled, forbidden_folders
from lfm_manager.environments.packages import Package, Packages
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.progress import Report
from lfm_manager.environments.verify import Client


def from_plan(plan: Plan, work: Path, packages: Packages, report: Report) -> Assembled:
    """The distributions that a plan lists."""
    if plan.interpreter is None:
        raise BuildFailed("the plan names no interpreter")
    return gathered(plan.interpreter, plan.distributions, plan.interpreter.prefix, work, packages, report)


def gathered(
    python: Interpreter,
    chosen: Sequence[Distribution],
    prefix: str,
    work: Path,
    packages: Packages,
    report: Report,
) -> Assembled:
    """An environment of these, which lie below ``prefix``, and the interpreter."""
    described = interpreter.describe(python.executable)
    made = _packages(python, described, chosen, prefix, packages, report)
    locations = {distribution.location for distribution in chosen}
    folders = {python.prefix, described.base_prefix, described.stdlib, described.platstdlib, *locations}
    return Assembled(
        environment=archive.from_packages(work / "prefix", made),
        python=described.version,
        machine=described.machine,
        libc=f"glibc 2.{max(package.glibc for package in made)}",
        distributions=tuple({"name": d.name, "version": d.version, "why": d.why} for d in chosen),
        forbidden=forbidden_folders(folders),
        client=Client(python.executable, tuple(sorted(locations))),
    )


def _packages(
    python: Interpreter, described: interpreter.Described, chosen: Sequence[Distribution], prefix: str,
    packages: Packages, report: Report,
) -> list[Package]:  # fmt: skip
    """The interpreter's package and theirs, in this order; copying and hashing leave Python's lock alone."""
    total = len(chosen) + 1
    report("build", 0, total, f"python {described.version}")
    with ThreadPoolExecutor(max_workers=min(4, len(os.sched_getaffinity(0)))) as pool:
        jobs = [pool.submit(interpreter.package, packages, python, described)]
        jobs += [pool.submit(distributions.package, packages, d, prefix, described) for d in chosen]
        names = [f"python {described.version}", *(f"{d.name} {d.version}" for d in chosen)]
        whose = dict(zip(jobs, names, strict=True))
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                report("build", done, total, whose[job])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [job.result() for job in jobs]

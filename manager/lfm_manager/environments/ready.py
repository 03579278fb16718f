"""Kind "tarball": one that the user packed; copied, tried, described."""

from __future__ import annotations

import shutil
from pathlib import Path

from lfm.function.plan import Plan
from lfm_manager.environments import archive, elf, interpreter, verify
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.progress import Report


def take(plan: Plan, work: Path, report: Report) -> tuple[archive.Packed, dict[str, str], list[str], Path]:
    """(what it is; python, machine and libc; warnings; the copy in ``work``)."""
    source, copy = Path(plan.tarball), work / "environment.tar.zst"
    if not source.is_file():
        raise BuildFailed(
            f"there is no tarball {source}", hint="give environment= the path of a conda-pack tarball"
        )
    report("pack", 0, 1, source.name)
    shutil.copyfile(source, copy)
    digest = archive.sha256(copy)
    report("verify", 0, 1, "")
    try:
        warnings = verify.verify(copy, digest, work / "elsewhere", plan.verify, ())
    except BuildFailed as error:
        reason = error.reason.replace(copy.name, source.name)
        raise BuildFailed(
            f"{source}: {reason}", module=error.module, hint=error.hint or "is it a tarball made by conda-pack, and whole?"
        ) from error
    prefix = work / "elsewhere" / digest
    python = interpreter.describe(str(prefix / "bin" / "python"))
    files = [path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink()]
    needs = max((elf.glibc_needed(path) for path in files if elf.is_elf(path)), default=17)
    packed = archive.Packed(
        digest, copy.stat().st_size, sum(path.stat().st_size for path in files), len(files)
    )
    facts = {"python": python.version, "machine": python.machine, "libc": f"glibc 2.{needs}"}
    return packed, facts, warnings, copy

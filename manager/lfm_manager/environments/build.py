"""The program that makes an environment: ``python -m lfm_manager.environments.build --plan FILE --store DIR --result FILE``.

Says JSON lines on stdout while it works, and writes either the environment's description or
``{"error": {"reason", "module", "hint"}}`` to the result file.  It runs in a process of its own, because what it
uses may be slow, may use much memory, and may (py-rattler) abort while the interpreter shuts down.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

from conda_pack.core import CondaPackException

from lfm.function.plan import Plan
from lfm_manager.environments import archive, conda, installation, ready, sight, verify, wheels
from lfm_manager.environments.assembled import Assembled
from lfm_manager.environments.packages import Packages
from lfm_manager.environments.places import cache_limit, packages_root
from lfm_manager.environments.problems import BuildFailed, OutOfSight, from_os_error
from lfm_manager.environments.progress import Lines, Report, silent
from lfm_manager.environments.store import Built, Store


def build(plan: Plan, store: Store, report: Report = silent, packages: Path | None = None) -> Built:
    """The environment of this plan, found or made; BuildFailed says why not.  Once per key among all processes."""
    if found := store.find(plan.key):
        return found
    report("wait", 0, 0, "")
    with store.building(plan.key):
        if found := store.find(plan.key):
            return found
        started = time.monotonic()
        sight.check(plan)
        work = store.workplace(plan.key)
        try:
            return _make(plan, store, work, started, report, Packages(packages or packages_root()))
        except OSError as error:
            raise from_os_error(error) from error
        except CondaPackException as error:
            raise BuildFailed(f"conda-pack: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _make(plan: Plan, store: Store, work: Path, started: float, report: Report, packages: Packages) -> Built:
    held: tuple[dict[str, str], ...] = ()
    if plan.kind == "tarball":
        packed, facts, warnings, tarball = ready.take(plan, work, report)
    else:
        assembled = assemble(plan, work, packages, report)
        tarball, held = work / "environment.tar.zst", assembled.distributions
        facts = {"python": assembled.python, "machine": assembled.machine, "libc": assembled.libc}
        packed = archive.pack(assembled.environment, tarball, report)
        report("verify", 0, 1, "")
        warnings = list(assembled.warnings)
        warnings += verify.verify(
            tarball, packed.digest, work / "elsewhere", plan.verify, assembled.forbidden, assembled.client
        )
    report("verify", 1, 1, "")
    built = Built(
        key=plan.key, digest=packed.digest, path=tarball, bytes=packed.bytes, **facts, distributions=held,
        kind=plan.kind, built=time.time(), built_s=round(time.monotonic() - started, 3),
        unpacked_bytes=packed.unpacked_bytes, files=packed.files, whole=dict(plan.whole), warnings=tuple(warnings),
    )  # fmt: skip
    return store.publish(tarball, built)


def assemble(plan: Plan, work: Path, packages: Packages, report: Report) -> Assembled:
    match plan.kind:
        case "python":
            return installation.from_plan(plan, work, packages, report)
        case "conda":
            return conda.from_prefix(plan, work, packages, report)
        case "spec" if plan.channels:
            return conda.from_specification(plan, work, packages, report)
        case "spec":
            return wheels.from_requirements(plan, work, packages, report)
        case other:
            raise BuildFailed(
                f"an environment of kind {other!r} is not known here",
                hint="are client and manager of the same version of lfm?",
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lfm_manager.environments.build", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="the JSON of a Plan")
    parser.add_argument("--store", type=Path, help="where environments are kept  [default: the user's cache]")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        plan = Plan.from_json(options.plan.read_bytes())
        store = Store(options.store and options.store.absolute())
        answer = build(plan, store, Lines()).to_dict()
        tidy(store)
    except Exception as error:  # whatever it is: whoever asked is told
        answer = failure(error)
    write_result(options.result, answer)
    return 1 if "error" in answer else 0


def failure(error: Exception) -> dict[str, object]:
    """What a result file says of one; of a defect the log has the rest."""
    if isinstance(error, BuildFailed):
        words = {"reason": error.reason, "module": error.module, "hint": error.hint}
        return {"error": words | {"out_of_sight": isinstance(error, OutOfSight)}}
    traceback.print_exception(error)
    return {"error": {"reason": f"{type(error).__name__}: {error}", "module": "", "hint": "see the manager's log"}}


def tidy(store: Store) -> None:
    """Keep the caches within their bounds; what was used within a day stays whatever they say."""
    try:
        store.gc(cache_limit(), older_than_s=86_400)
        Packages(packages_root()).gc(cache_limit())
    except OSError:
        traceback.print_exc()  # it can wait; the environment is there


def write_result(path: Path, answer: dict[str, object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(answer))
    shutil.move(aside, path)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not through the interpreter's end: a native library's threads may abort there

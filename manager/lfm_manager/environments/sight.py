"""Whether this machine sees what a plan speaks of: the disk of a client, which may be another machine's.

On the client's own machine it is enough that the files are there.  Elsewhere the same path may hold something
else, so what is there has to have the plan's fingerprints: then it is the same, as on a shared file system.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from lfm.function.conda import CondaRecord
from lfm.function.installed import Installation, LoneFile
from lfm.function.plan import Distribution, Interpreter, Plan
from lfm_manager.environments.problems import OutOfSight

_HINT = "submit from where the manager is, or name what you need with environment="
_ROOT = Path(__file__).resolve().parents[3]
_FINGERPRINT = (
    "import sys; sys.path[:0] = sys.argv[1:]; from lfm.function.interpreter import this; print(this().fingerprint)"
)
SECONDS = 120.0


def check(plan: Plan) -> None:
    """OutOfSight if it cannot be built here."""
    if plan.kind == "tarball" and not os.access(plan.tarball, os.R_OK):
        raise OutOfSight(
            f"there is no tarball {plan.tarball} on {platform.node()}", hint="give environment= the path of a conda-pack tarball"
        )
    places = []
    if plan.interpreter is not None and not plan.channels:
        places.append(plan.interpreter.executable)
    places += [distribution.metadata for distribution in plan.distributions]
    where = plan.host or "the client"
    for place in places:
        if not os.access(place, os.R_OK):
            raise OutOfSight(f"{place} of {where} is not in sight of {platform.node()}", hint=_HINT)
    if plan.kind not in ("python", "conda") or not plan.host or plan.host == platform.node():
        return
    changed = next((d.metadata for d in plan.distributions if not _is_same(plan.kind, d)), None)
    if changed is None and plan.interpreter is not None and not _is_same_python(plan.interpreter):
        changed = plan.interpreter.executable
    if changed is not None:
        raise OutOfSight(f"{changed} of {where} is not the same on {platform.node()}", hint=_HINT)


def _is_same(kind: str, distribution: Distribution) -> bool:
    metadata = distribution.metadata
    if kind == "conda" and metadata.endswith(".json"):
        return CondaRecord(metadata).fingerprint == distribution.fingerprint
    lone = not metadata.endswith((".dist-info", ".egg-info"))
    return (LoneFile if lone else Installation)(metadata).fingerprint == distribution.fingerprint


def _is_same_python(python: Interpreter) -> bool:
    """It tells its fingerprint itself, by the code that told the client's."""
    try:
        done = subprocess.run(
            [python.executable, "-I", "-B", "-c", _FINGERPRINT, str(_ROOT)],
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == python.fingerprint

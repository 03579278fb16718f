"""Run the build program in a process of its own and wait for it: for commands; a manager's loop starts its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lfm.function.plan import Plan
from lfm_manager.environments.problems import BuildFailed, OutOfSight
from lfm_manager.environments.progress import Report, silent
from lfm_manager.environments.store import Built, Store


def build_command(plan: Path, store: Path, result: Path) -> list[str]:
    """What to run to build the plan in a file."""
    return [  # -P: nothing in the folder we stand in shadows ours
        sys.executable, "-P", "-m", "lfm_manager.environments.build",
        "--plan", str(plan), "--store", str(store), "--result", str(result),
    ]  # fmt: skip


def adopt_command(key: str, tarball: Path, description: Path, store: Path, result: Path) -> list[str]:
    """What to run to take into the store what was built on another machine."""
    return [
        sys.executable, "-P", "-m", "lfm_manager.environments.adopt", "--key", key,
        "--tarball", str(tarball), "--description", str(description), "--store", str(store), "--result", str(result),
    ]  # fmt: skip


def read_result(result: Path, log: str = "") -> Built:
    """What the build program wrote; BuildFailed if it failed or died."""
    try:
        raw = json.loads(result.read_bytes())
    except (OSError, ValueError):
        last = log.strip().splitlines()[-1:] or ["it said nothing"]
        raise BuildFailed(f"the program that builds environments died: {last[0]}") from None
    if "error" in raw:
        error = raw["error"]
        kind = OutOfSight if error.get("out_of_sight") else BuildFailed
        raise kind(error["reason"], module=error["module"], hint=error["hint"])
    return Built.from_dict(raw)


def build(plan: Plan, store: Store, report: Report = silent) -> Built:
    """The environment of this plan, found or made in a child process."""
    if found := store.find(plan.key):
        return found
    with tempfile.TemporaryDirectory(prefix="lfm-build-") as work:
        source, result, log = Path(work, "plan.json"), Path(work, "result.json"), Path(work, "log")
        source.write_bytes(plan.to_json())
        with open(log, "wb") as errors:
            child = subprocess.Popen(
                build_command(source, store.root, result), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        with child:
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    step = json.loads(line)
                    report(step["stage"], step["done"], step["total"], step["text"])
            except (
                BaseException
            ):  # Ctrl-C: do not leave it behind; what it made so far the next build removes
                child.terminate()
                raise
        return read_result(result, log.read_text(errors="replace"))

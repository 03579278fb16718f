"""Bytecode for a package's modules, made by the interpreter that will import them.

Bytecode that the client already has is taken over (only its file name and header change), which is twenty
times cheaper than compiling.  Work is cut into fixed pieces, so that what comes out does not depend on how
many processors there are.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lfm_manager.environments import elf
from lfm_manager.environments.packages import Draft
from lfm_manager.environments.problems import BuildFailed

_PROGRAM = Path(__file__).parent / "inside" / "bytecode.py"
PIECE = 400  # files per process


@dataclass(frozen=True, slots=True)
class Module:
    source: Path  # what to compile
    kept: Path | None  # bytecode of the client's that may be of this source
    target: Path  # where the bytecode goes
    name: str  # what tracebacks say before it is imported from its place


def planned(draft: Draft, source: Path, target: str, cache_tag: str) -> Module:
    """The bytecode of ``source``, which is ``target`` in the package being made."""
    folder, name = os.path.split(target)
    compiled = f"{name.removesuffix('.py')}.{cache_tag}.pyc"
    kept = source.parent / "__pycache__" / compiled
    place = draft.at(f"{folder}/__pycache__/{compiled}")
    return Module(source, kept if kept.exists() else None, place, target)


def compile_all(python: Path, modules: Sequence[Module]) -> None:
    """Write the bytecode of every module that ``python`` can compile."""
    pieces = [modules[start : start + PIECE] for start in range(0, len(modules), PIECE)]
    if not pieces:
        return
    with ThreadPoolExecutor(max_workers=min(len(pieces), len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(lambda piece: _compile(python, piece), pieces):
            pass


def _compile(python: Path, modules: Sequence[Module]) -> None:
    order = json.dumps(
        {"files": [[str(m.source), str(m.kept or ""), str(m.target), m.name] for m in modules]}
    )
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-W", "ignore", _PROGRAM],
        input=order, capture_output=True, text=True, check=False,
        env=elf.loader_environment() | {"PYTHONHASHSEED": "0"},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BuildFailed(f"{python} cannot compile modules: {last}")

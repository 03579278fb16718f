"""Proof that a tarball runs: unpacked elsewhere, as a worker does it, its own Python imports what is asked of it.

It is the artifact that is tried, not the build: with an empty environment, from another folder, and with an eye
on every file that comes from outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lfm_manager.environments.places import TRIMMED
from lfm_manager.environments.problems import BuildFailed

_PROGRAM = Path(__file__).parent / "inside" / "verify.py"
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Client:
    """The user's own Python, and where its packages lie: to tell their failures from ours."""

    python: str
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    failed: tuple[dict[str, object], ...]
    outside: dict[str, str]  # file from outside the prefix: the module that opened it


def unpack(tarball: Path, digest: str, into: Path) -> Path:
    """As a worker does it, by the same program."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lfm_worker.shell.unpack", tarball, digest, into],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildFailed(f"the packed environment cannot be unpacked: {_last_line(done.stderr)}")
    return into / digest


def look(python: Path, modules: tuple[str, ...], forbidden: tuple[str, ...]) -> Findings:
    """Import ``modules`` in ``python``; what failed, and what came from outside its prefix.

    The program is no file to it: there are modules that read the source of whoever imports them, torch among them.
    """
    with tempfile.TemporaryDirectory(prefix="lfm-verify-") as home:
        try:
            done = subprocess.run(
                [python, "-I", "-B", "-c", _PROGRAM.read_text()], input=json.dumps({"modules": modules, "forbidden": forbidden}),
                capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS, cwd=home,
                env={"PATH": os.defpath, "HOME": home, "TMPDIR": home, "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(
                f"importing {', '.join(modules)} does not end within {SECONDS:.0f} s"
            ) from error
    try:
        raw = json.loads(done.stdout)
    except ValueError:
        raise BuildFailed(
            f"the packed Python dies while it imports {', '.join(modules) or 'nothing'}: "
            f"{_last_line(done.stderr) or f'exit code {done.returncode}'}"
        ) from None
    return Findings(tuple(raw["failed"]), raw["outside"])


def verify(
    tarball: Path,
    digest: str,
    into: Path,
    modules: tuple[str, ...],
    forbidden: tuple[str, ...],
    client: Client | None = None,
) -> list[str]:
    """BuildFailed unless all modules import from the tarball alone; else warnings.

    A module that fails on the client in the same way is a warning, unless a module is missing: it is not our doing.
    """
    prefix = unpack(tarball, digest, into)
    found = look(prefix / "bin" / "python", modules, forbidden)
    warnings = []
    for failure in found.failed:
        if client and not failure["missing"] and _fails_there_too(client, failure):
            warnings.append(
                f"{failure['module']} cannot be imported, here as on the client: {_text(failure)}"
            )
            continue
        missing = str(failure["missing"] or failure["behind"] or "")
        raise BuildFailed(
            f"the environment lacks {missing!r}, which {failure['module']} imports"
            if missing and missing != failure["module"]
            else f"{failure['module']} cannot be imported from the packed environment: {_text(failure)}",
            module=missing or str(failure["module"]),
            hint=_way_out(missing, str(failure["module"])),
        )
    if found.outside:
        path, module = next(iter(found.outside.items()))
        raise BuildFailed(
            f"{module} takes {path} from outside of the environment: it would be missing on a node",
            module=module,
        )
    return warnings


def _fails_there_too(client: Client, failure: dict[str, object]) -> bool:
    done = subprocess.run(
        [client.python, "-B", "-c", f"import {failure['module']}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(client.path)},
    )
    return done.returncode != 0 and str(failure["type"]) in done.stderr


def _way_out(missing: str, module: str) -> str:
    if missing.partition(".")[0] in TRIMMED:
        return "this part of the standard library is left out: it serves screens, tests or installing"
    return f"add it with imports=[{missing!r}]" if missing and missing != module else ""


def _text(failure: dict[str, object]) -> str:
    return f"{failure['type']}: {failure['text']}" if failure["text"] else str(failure["type"])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""

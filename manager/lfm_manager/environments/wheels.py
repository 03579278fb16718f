"""A requirements list: installed by uv or pip for the client's Python, into a folder of the build.

Which of the two, and from which index, is as the user has configured them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lfm.function.plan import Distribution, Plan
from lfm_manager.environments import installation
from lfm_manager.environments.assembled import Assembled
from lfm_manager.environments.packages import Packages
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.progress import Report

SECONDS = 3600.0


def from_requirements(plan: Plan, work: Path, packages: Packages, report: Report) -> Assembled:
    """Kind "spec" without channels."""
    if plan.interpreter is None:
        raise BuildFailed("the plan names no interpreter")
    report("solve", 0, 0, ", ".join(plan.specification))
    place = work / "installed"
    install(Path(plan.interpreter.executable), plan.specification, place)
    found = installed(place, plan.specification)
    made = installation.gathered(plan.interpreter, found, str(place), work, packages, report)
    return replace(made, client=None)  # the client need not have any of it


def install(python: Path, requirements: Sequence[str], prefix: Path) -> None:
    """Put what ``requirements`` ask for into ``prefix``; says in words what cannot be satisfied."""
    prefix.mkdir(parents=True, exist_ok=True)
    listed = prefix / ".requirements.txt"
    listed.write_text("".join(f"{line}\n" for line in requirements))
    try:
        done = subprocess.run(
            [*_installer(python), "--prefix", str(prefix), "-r", str(listed)],
            capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS, cwd=prefix,
            env={k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"installing {', '.join(requirements)} does not end") from error
    finally:
        listed.unlink(missing_ok=True)
    if done.returncode:
        raise BuildFailed(
            f"cannot install {', '.join(requirements)}: {_complaint(done.stderr or done.stdout)}",
            hint="change the requirements, or configure pip's index (PIP_INDEX_URL) where the manager runs",
        )


def _installer(python: Path) -> list[str]:
    beside = Path(sys.executable).parent / "uv"
    if uv := (str(beside) if beside.exists() else shutil.which("uv")):
        return [uv, "pip", "install", "--quiet", "--no-progress", "--python", str(python)]
    options = [
        "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile", "--ignore-installed",
        "--no-warn-script-location", "--break-system-packages",
    ]  # fmt: skip
    if _has_pip(sys.executable):
        return [sys.executable, "-m", "pip", "--python", str(python), *options]
    if _has_pip(str(python)):
        return [str(python), "-m", "pip", *options]
    raise BuildFailed("neither uv nor pip is there to install requirements", hint="pip install uv")


def _has_pip(python: str) -> bool:
    return (
        subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )


def _complaint(text: str) -> str:
    """What uv or pip says is wrong, without its ornaments and its list of every version there ever was."""
    lines = [line.strip(" ×╰─▶│") for line in text.splitlines()]
    lines = [re.sub(r"^error:\s*", "", line, flags=re.IGNORECASE) for line in lines if line]
    told = [
        line for line in lines if not line.startswith(("No matching distribution", "WARNING", "[notice]"))
    ]
    words = " ".join(told[-4:]) or "it does not say why"
    return re.sub(r"\(from versions: (?:.*, )?([^,)]*, [^,)]*, [^,)]*)\)", r"(the latest are \1)", words)


def installed(prefix: Path, requirements: Sequence[str]) -> list[Distribution]:
    """What lies in ``prefix``, by its metadata folders."""
    asked = {normalise(distribution_name(line)) for line in requirements}
    found = []
    for metadata in sorted(prefix.rglob("*.dist-info")):
        name, _, version = metadata.name.removesuffix(".dist-info").partition("-")
        name = normalise(name)
        record = metadata / "RECORD"
        if not record.is_file():
            continue
        found.append(
            Distribution(
                name=name,
                version=version,
                why="asked for" if name in asked else "required by what was asked for",
                location=str(metadata.parent),
                metadata=str(metadata),
                fingerprint=hashlib.sha256(_contents(record)).hexdigest(),
            )
        )
    return found


def held_by_pip(prefix: Path) -> list[dict[str, str]]:
    """The distributions in a conda prefix that pip put there."""
    return [
        {"name": d.name, "version": d.version, "why": "asked for of pip"}
        for d in installed(prefix, ())
        if _installer_of(Path(d.metadata)) in ("pip", "uv")
    ]


def _installer_of(metadata: Path) -> str:
    try:
        return (metadata / "INSTALLER").read_text().strip()
    except OSError:
        return ""


def _contents(record: Path) -> bytes:
    """The lines of a RECORD that say what is in it, not how it was installed."""
    lines = record.read_bytes().splitlines()
    return b"\n".join(
        sorted(line for line in lines if b".dist-info/" not in line and not line.startswith(b".."))
    )


def distribution_name(requirement: str) -> str:
    """``numpy[extra]>=1; python_version > "3"`` -> ``numpy``."""
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index]
    return requirement


def normalise(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    out = "".join(character if character.isalnum() else "-" for character in name.lower())
    return "-".join(part for part in out.split("-") if part)

"""What the documentation says to type is typed: files written, scripts run, commands run, from an empty directory.

A block of Python under ``<!-- file: NAME -->`` is a file, under ``<!-- run -->`` a script; others must compile.
The lines of console blocks that begin with ``$ `` are run by one shell for each page, and must succeed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    line: int
    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page.name, text.count("\n", 0, found.start()) + 1, found["mark"] or "", found["language"], found["text"])
        for found in BLOCK.finditer(text)
    ]


PAGES = sorted(DOCS.glob("*.md"))
ALL = [block for page in PAGES for block in blocks(page)]
SCRIPTS = [block for block in ALL if block.mark == "run"]


def surroundings(tmp_path: Path) -> dict[str, str]:
    """The environment of a user: this interpreter's commands first, runs in a home of their own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in ("LFM_RUN", "PYTHONPATH")}
    return {**kept, "PATH": path, "LFM_HOME": str(tmp_path / "home")}


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python"], ids=lambda b: f"{b.page}:{b.line}")
def test_python_compiles(block: Block) -> None:
    compile(block.text, f"{block.page}:{block.line}", "exec", dont_inherit=True)


@pytest.mark.process
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", SCRIPTS, ids=lambda b: f"{b.page}:{b.line}")
def test_script_runs(block: Block, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(block.text)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=surroundings(tmp_path),
                          capture_output=True, text=True, timeout=580)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.process
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [p for p in PAGES if "```console" in p.read_text()], ids=lambda p: p.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    for block in found:
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
    commands = [
        line.removeprefix("$ ")
        for block in found
        if block.language == "console"
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]
    script = tmp_path / "commands.sh"
    # Job control, as at a terminal: %1 is the first command with an ampersand.  Nothing may outlive the shell.
    script.write_text("\n".join(["set -emx", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *commands, "wait", ""]))
    with (tmp_path / "shown").open("w+") as shown:
        done = subprocess.run(["bash", str(script)], cwd=tmp_path, env=surroundings(tmp_path), stdin=subprocess.DEVNULL,
                              stdout=shown, stderr=subprocess.STDOUT, timeout=580)  # fmt: skip
        shown.seek(0)
        assert done.returncode == 0, shown.read()

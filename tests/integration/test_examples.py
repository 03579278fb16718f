"""The two examples, smaller: whole scripts, from an empty directory, on an embedded manager and worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
PATIENCE = 300.0  # seconds
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(script: str, *arguments: object, cwd: Path, code: int = 0) -> str:
    """What a script printed; its exit code must be ``code``."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            out, err = running.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            shown = [seen(cwd, *words) for words in (("status",), ("tasks",), ("explain", "1"))]
            running.kill()
            pytest.fail("\n".join([f"not over in {PATIENCE} s", *shown, *running.communicate()]))
    assert running.returncode == code, out + err
    return out + err


def seen(cwd: Path, *words: str) -> str:
    """What lfm's command line says of the script that runs there."""
    environ = {**os.environ, "LFM_HOME": str(cwd)}  # no other run but the script's own
    shown = subprocess.run([sys.executable, "-m", "lfm", *words], env=environ, capture_output=True, text=True, timeout=60)
    return f"$ lfm {' '.join(words)}\n{shown.stdout}{shown.stderr}"


def used(shown: str) -> dict[str, int]:
    """Function -> calls, of the table that ends an example."""
    rows = re.findall(r"^(\w+) +(\d+) +[\d.]+[MG] of [\d.]+[MG] ", shown, re.MULTILINE)
    return {name: int(calls) for name, calls in rows}


def test_drug_screening(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("sklearn")
    few = ("--molecules", 48, "--chunk", 8, "--repeats", 1, "--members", 2, "--tails", 2, "--top", 3)
    shown = run("drug_screening.py", *few, cwd=tmp_path)
    calls = used(shown)
    assert calls["describe"] == 6
    assert calls["cross_validate"] == 10
    assert calls["predict"] == 2
    assert calls.keys() == {"describe", "fingerprint", "cross_validate", "recombine", "predict"}
    assert len(re.findall(r"^\d\.\d\d ± ", shown, re.MULTILINE)) == 3, shown


def test_dimuon_of_a_simulated_file(tmp_path: Path) -> None:
    pytest.importorskip("uproot")
    pytest.importorskip("hist")
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    shown = run("hep_dimuon.py", "--events", 6000, "--chunk", 500, cwd=tmp_path)
    assert "not real data" in shown
    mass, error = map(float, re.findall(r"peak at ([\d.]+) ± ([\d.]+) GeV", shown)[0])
    assert abs(mass - 91.188) < 5 * error < 1
    calls = used(shown)
    assert calls["histogram"] > 5
    assert calls["merge"] >= 1 == calls["fit"] == calls["draw"]
    assert (tmp_path / "dimuon.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("uproot")
    assert "nothing.root: no such file" in run("hep_dimuon.py", "nothing.root", cwd=tmp_path, code=1)

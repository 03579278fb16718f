"""``lfm monitor -- COMMAND`` as typed: exit codes, limits, what it says; and that nothing of its user's is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process


def _monitor(home: Path, *words: str, code: int) -> tuple[dict[str, Any], str]:
    """Run in a directory that holds something, with a place for temporary files that does too; both must stay."""
    place = home / "tmp"
    for folder in (home, place):
        folder.mkdir(exist_ok=True)
        (folder / "mine").write_text("stays")
    ended = subprocess.run(
        [sys.executable, "-m", "lfm", "monitor", "--json", *words],
        cwd=home, env=os.environ | {"TMPDIR": str(place)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert (home / "mine").read_text() == (place / "mine").read_text() == "stays"
    assert [path.name for path in place.iterdir()] == ["mine"]
    *said, facts = ended.stdout.splitlines()
    return json.loads(facts), "\n".join(said)


def test_its_exit_code_is_the_commands(tmp_path: Path) -> None:
    facts, said = _monitor(tmp_path / "home", "--", "sh", "-c", "pwd; echo made > new; exit 3", code=3)
    assert (facts["exit_code"], facts["signal"], facts["limit"], said) == (3, None, None, str(tmp_path / "home"))
    assert (tmp_path / "home" / "new").exists()
    facts, _ = _monitor(tmp_path / "home", "--", "sh", "-c", "kill -TERM $$", code=128 + 15)
    assert (facts["exit_code"], facts["signal"]) == (None, 15)
    _monitor(tmp_path / "home", "--", str(tmp_path / "absent"), code=127)


def test_a_limit_on_disk_is_one_on_its_temporary_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    script = "head -c 30000000 /dev/zero > here; head -c 3000000 /dev/zero > $TMPDIR/f; mkdir $TMPDIR/d; chmod 0 $TMPDIR/d; echo $TMPDIR"
    facts, said = _monitor(home, "--disk", "20MB", "--", "sh", "-c", script, code=0)
    assert Path(said).parent.parent == home / "tmp"
    assert facts["limit"] is None and 3_000_000 <= facts["usage"]["disk"] < 4_000_000
    assert (home / "here").stat().st_size == 30_000_000
    facts, _ = _monitor(home, "--disk", "20MB", "--", "sh", "-c", "cat here > $TMPDIR/f; sleep 600", code=152)
    assert facts["limit"]["resource"] == "disk" and facts["limit"]["limit"] == 20_000_000
    # what it makes of its directory is no reason to remove another one
    _monitor(home, "--disk", "20MB", "--", "sh", "-c", 'rmdir "$TMPDIR"; ln -s "$PWD" "$TMPDIR"', code=0)
    assert (home / "here").exists()


def test_a_limit_on_memory_ends_all_of_it(tmp_path: Path) -> None:
    script = f"{sys.executable} -S -c 'x = bytearray(300_000_000); import time; time.sleep(600)' & sleep 600"
    facts, _ = _monitor(tmp_path / "home", "--memory", "100MB", "--", "sh", "-c", script, code=152)
    assert facts["limit"]["resource"] == "memory" and facts["usage"]["processes"] == 3

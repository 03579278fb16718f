"""``lfm env`` as a person and a script use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

MODEL = """
import helper
def plain(x):
    return helper.twice(x)
def packs(x):
    import msgpack
    return msgpack.packb(x)
number = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("user")
    (root / "model.py").write_text(MODEL)
    (root / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    (root / "broken.py").write_text("raise RuntimeError('as it happens')\n")
    return root


def lfm(place: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-c", "from lfm_manager.environments.cli import env; env()", *arguments]
    environment = {
        "LFM_CACHE": str(place / "cache"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_from_a_function_to_its_environment_and_back(place: Path) -> None:
    found = json.loads(lfm(place, "resolve", "model.py:packs", "--json"))
    assert [d["name"] for d in found["distributions"]] == ["msgpack"]
    assert "model.py" in found["distributions"][0]["why"]
    assert found["overlay"] == []
    whole = json.loads(lfm(place, "resolve", "model.py:packs", "--as-module", "--json"))
    assert (whole["id"], whole["overlay"]) == (found["id"], ["helper.py", "model.py"])
    assert json.loads(lfm(place, "resolve", "model.py:plain", "--json"))["overlay"] == ["helper.py"]
    assert not found["built"]
    packed = json.loads(lfm(place, "pack", "model.py:packs", "-o", "out.tar.zst", "--json"))
    assert (packed["id"], packed["bytes"]) == (found["id"], (place / "out.tar.zst").stat().st_size)
    shown = json.loads(lfm(place, "show", found["id"][:10], "--json"))
    assert {"id", "digest", "bytes", "python", "distributions", "overlay", "built_s"} <= shown.keys()
    assert shown["schema"] == "lfm.env.show/1"
    assert set(shown["distributions"][0]) == {"name", "version", "why"}
    assert "msgpack" in lfm(place, "show", shown["digest"][:10])
    assert "msgpack" in lfm(place, "list")

    plain = json.loads(lfm(place, "pack", "model.py:plain", "--json"))
    assert plain["overlay"] == json.loads(lfm(place, "show", plain["id"], "--json"))["overlay"] == ["helper.py"]
    difference = json.loads(lfm(place, "diff", plain["id"], found["id"], "--json"))
    assert [(d["name"], d["a"]) for d in difference["distributions"]] == [("msgpack", None)]
    assert lfm(place, "export", found["id"]).splitlines()[1].startswith("msgpack==")
    lfm(place, "export", found["id"], "-o", "environment.yml")
    assert "  - pip:" in (place / "environment.yml").read_text()
    lfm(place, "export", plain["id"], "-o", "plain.tar.zst")
    assert (place / "plain.tar.zst").stat().st_size == plain["bytes"]

    gone = json.loads(lfm(place, "gc", "--all", "--json"))
    assert sorted(gone["environments"]) == sorted([plain["id"], found["id"]])
    assert json.loads(lfm(place, "list", "--json"))["environments"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["resolve", "absent.py:f"], 1, "no file absent.py"),
        (["resolve", "model.py:absent"], 1, "has no absent"),
        (["resolve", "model.py:number"], 1, "is not a function"),
        (["resolve", "model.py"], 2, "FILE:FUNCTION"),
        (["resolve", "broken.py:f"], 1, "as it happens"),
        (["show", "123456"], 1, "no environment 123456"),
        (["diff", "1", "2"], 1, "no environment 1"),
        (["gc", "--keep", "much"], 2, "much"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_a_line(
    place: Path, arguments: list[str], code: int, words: str
) -> None:
    said = lfm(place, *arguments, code=code)
    assert words in said
    assert "Traceback" not in said

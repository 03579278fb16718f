"""Environments that a user names: what they become, and what bad ones say."""

from pathlib import Path

import pytest

from lfm.errors import AnalysisError
from lfm.function import explicit
from lfm.function.pack import Packer
from lfm.function.plan import Plan


def test_a_list_of_requirements(tmp_path: Path) -> None:
    one, name = explicit.plan(["numpy>=1.26", "scipy", "numpy>=1.26"])
    two, _ = explicit.plan(("scipy", "numpy>=1.26"))
    assert one.kind == "spec" and one.specification == ("numpy>=1.26", "scipy") and one.channels == ()
    assert one.key == two.key and name == "numpy>=1.26, scipy" and one.interpreter is not None
    assert Plan.from_json(one.to_json()) == one
    assert explicit.plan(["scipy"])[0].key != one.key
    (tmp_path / "more.txt").write_text("scipy \\\n  # comment\n")
    file = tmp_path / "requirements.txt"
    file.write_text("# ours\nnumpy>=1.26  # comment\n-r more.txt\n\n")
    assert explicit.plan(str(file))[0].key == one.key


def test_an_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "environment.yml"
    file.write_text(
        "name: mine  # a comment\nchannels:\n  - conda-forge\n  - 'file:///opt/channel'\n  - nodefaults\n"
        'dependencies:\n- python=3.11\n- "numpy >=1.26"\n- pip\n- pip:\n    - requests>=2\n    - rich\n- scipy\nprefix: /x\n'
    )
    plan, name = explicit.plan(file)
    assert name == "mine" and plan.channels == ("conda-forge", "file:///opt/channel")
    assert set(plan.specification) == {
        "python=3.11",
        "numpy >=1.26",
        "pip",
        "pip:requests>=2",
        "pip:rich",
        "scipy",
    }
    file.write_text("dependencies: [numpy, 'scipy <2']\n")
    plan, name = explicit.plan(file)
    assert plan.channels == ("conda-forge",) and plan.specification == ("numpy", "scipy <2")


def test_a_tarball(tmp_path: Path) -> None:
    file = tmp_path / "env.tar.gz"
    file.write_bytes(b"one")
    plan, name = explicit.plan(str(file))
    assert (plan.kind, plan.tarball, name, plan.interpreter) == ("tarball", str(file), "env.tar.gz", None)
    file.write_bytes(b"two and more")
    assert explicit.plan(str(file))[0].key != plan.key


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.yml", None, "cannot be read"),
        ("x.tar.gz", None, "cannot be read"),
        ("x.yml", "dependencies: numpy\n", "x.yml:1: dependencies must be a list"),
        ("x.yml", "dependencies:\n  numpy\n", "x.yml:2: 'numpy' is not understood"),
        ("x.yml", "name: x\n", "x.yml names no requirement"),
        ("x.yml", "- numpy\n", "x.yml names no requirement"),
        ("x.yml", "dependencies: [numpy,\n  scipy]\n", "one a line"),
        ("x.txt", "numpy\n--index-url x\n", "x.txt:2: '--index-url x' is not a requirement"),
        ("x.toml", "", "give a list of requirements"),
    ],
)
def test_what_makes_no_sense_says_so(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(AnalysisError, match=says):
        explicit.plan(str(file))


def test_an_edited_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("numpy\n")
    packer = Packer()
    first = packer.pack(len, environment=str(file))
    assert packer.pack(len, environment=str(file)) is first
    file.write_text("numpy\nscipy\n")
    second = packer.pack(len, environment=str(file))
    assert second.plan.specification == ("numpy", "scipy") and second.environment_name == "numpy, scipy"

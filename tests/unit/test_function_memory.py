"""What is presumed of an installed distribution, and what becomes of a function that was packed on a wrong presumption."""

import base64
import hashlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm.function import interpreter
from lfm.function.memory import Memory
from lfm.function.pack import Packed, Packer
from lfm.options import Options
from lfm.outgoing import Outgoing
from lfm.protocol.ids import TaskId
from lfm.spool import Spool

NAME = "presumed_of_a_test"
PATIENCE = 60.0


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of an installed distribution."""
    monkeypatch.setenv("LFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    info = tmp_path / "site-packages" / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {NAME}\nVersion: 1.0\n\n")
    module = tmp_path / "site-packages" / f"{NAME}.py"
    module.write_text("VALUE = 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(module.read_bytes()).digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"{module.name},sha256={digest},{module.stat().st_size}\n{info.name}/RECORD,,\n")
    yield module
    sys.modules.pop(NAME, None)


names: dict[str, Any] = {"__name__": "__main__"}
exec(f"def function():\n    import {NAME}\n    return {NAME}.VALUE\n", names)  # a script's: it travels by value
function = names["function"]


def session() -> tuple[Memory, Packer, Packed]:
    memory = Memory()
    packer = Packer(looking=memory)
    return memory, packer, packer.pack(function)


def test_a_later_session_presumes_and_an_edit_is_found_when_it_looks(file: Path) -> None:
    _, packer, first = session()
    assert [d.name for d in first.plan.distributions] == [NAME.replace("_", "-")]
    assert first.plan == Packer().pack(function).plan
    assert packer.unsure and not packer.look() and not packer.unsure  # what was looked at is written down

    _, packer, same = session()
    assert same.plan == first.plan and packer.unsure
    assert not packer.look() and not packer.unsure and packer.pack(function) is same

    file.write_text("VALUE = 2\n")  # in place: of all folders none has changed
    _, packer, stale = session()
    assert stale.plan == first.plan and packer.look()
    anew = packer.anew(stale)
    assert anew.plan.key != first.plan.key and anew.plan == Packer().pack(function).plan
    assert packer.pack(function) is anew or packer.pack(function).function == anew.function

    _, packer, edited = session()
    assert edited.plan == anew.plan and not packer.look()


def test_what_nothing_tells_of_is_looked_at_at_once(file: Path) -> None:
    session()[1].look()
    next(file.parent.glob("*.dist-info/RECORD")).unlink()
    _, packer, packed = session()
    packer.look()
    file.write_text("VALUE = 3\n")
    assert session()[2].plan.key != packed.plan.key


@pytest.mark.parametrize("content", ["", "[]", '{"distributions": 3, "pythons": {"x": 1}}', "{"])
def test_a_memory_that_makes_no_sense_is_none(file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "installed.json").write_text(content)
    assert session()[2].plan == Packer().pack(function).plan


def test_another_interpreter_is_not_presumed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session()[1].look()
    stamp = interpreter.stamp()
    monkeypatch.setattr(interpreter, "stamp", lambda: [*stamp, "newer"])
    memory = Memory()
    memory.python()
    assert memory.unsure and not memory.look()  # it was looked at, and is to be written down


def test_nothing_leaves_before_it_was_looked_at(file: Path, tmp_path: Path) -> None:
    session()[1].look()
    file.write_text("VALUE = 4\n")
    looked = threading.Event()
    spool = Spool(tmp_path)
    outgoing = Outgoing(spool, looked.set)
    submit, described = outgoing.submit(TaskId("t-1"), function, [((), {})], False, Options(), 0)
    assert looked.wait(PATIENCE)
    assert not outgoing.doubtful(submit.function)
    best = outgoing.best(submit.function)
    assert best.environment.key != described.environment.key
    assert best.environment.key == Packer().pack(function).plan.key
    again, described = outgoing.submit(TaskId("t-2"), function, [((), {})], False, Options(), 0)
    assert again.function == best.function.function and not outgoing.doubtful(again.function)
    spool.close()

"""What is presumed of an installed distribution, and what becomes of a function that was packed on a wrong presumption."""

import base64
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm.errors import AnalysisError
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
    (info / "RECORD").write_text(f"{module.name},sha256={digest},{module.stat().st_size}\n{NAME}.dat,,\n{info.name}/RECORD,,\n")
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
    assert not packer.sure(first) and packer.settle(first) is first and packer.sure(first)  # and is written down

    _, packer, same = session()
    assert same.plan == first.plan and not packer.sure(same)
    assert packer.settle(same) is same and packer.sure(same) and packer.pack(function) is same

    file.write_text("VALUE = 2\n")  # in place: of all folders none has changed
    _, packer, stale = session()
    assert stale.plan == first.plan
    anew = packer.settle(stale)
    assert anew.plan.key != first.plan.key and anew.plan == Packer().pack(function).plan
    assert packer.sure(anew) and not packer.sure(stale) and packer.pack(function).function == anew.function

    _, packer, edited = session()
    assert edited.plan == anew.plan and packer.settle(edited) is edited


def test_what_nothing_tells_of_is_looked_at_at_once(file: Path) -> None:
    session()[0].look()
    next(file.parent.glob("*.dist-info/RECORD")).unlink()
    memory, _, packed = session()
    memory.look()
    file.write_text("VALUE = 3\n")
    assert session()[2].plan.key != packed.plan.key


@pytest.mark.parametrize("content", ["", "[]", '{"distributions": 3, "pythons": {"x": 1}}', "{"])
def test_a_memory_that_makes_no_sense_is_none(file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "installed.json").write_text(content)
    assert session()[2].plan == Packer().pack(function).plan


def test_another_interpreter_is_not_presumed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session()[0].look()
    stamp = interpreter.stamp()
    monkeypatch.setattr(interpreter, "stamp", lambda: [*stamp, "newer"])
    memory = Memory()
    memory.python()
    assert memory.unsure  # it was looked at, and is to be written down
    memory.look()
    assert not memory.unsure and memory.generation == 0


def test_nothing_leaves_before_it_was_looked_at(file: Path, tmp_path: Path) -> None:
    session()[0].look()
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


class Slow:
    """Does something while it is pickled: after the function was packed, before it is described."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def __reduce__(self) -> Any:
        self.meanwhile()
        return int, ()


names["Slow"] = Slow
exec(f"def slow(kind=Slow, made=int):\n    import {NAME}\n", names)  # needs what its argument needs
slow = names["slow"]


def test_what_is_described_only_after_the_look_is_not_as_presumed_either(file: Path, tmp_path: Path) -> None:
    session()[0].look()
    file.write_text("VALUE = 2  # edited\n")
    looked = threading.Event()
    spool = Spool(tmp_path)
    outgoing = Outgoing(spool, looked.set)
    exec(f"def other():\n    import {NAME}\n    return 1\n", names)

    def another_is_looked_at() -> None:
        other = outgoing.submit(TaskId("b"), names["other"], [((), {})], False, Options(), 0)[0]
        assert looked.wait(PATIENCE) and not outgoing.doubtful(other.function)
        looked.clear()

    submit, _ = outgoing.submit(TaskId("a"), slow, [((Slow(another_is_looked_at),), {})], False, Options(), 0)
    assert looked.wait(PATIENCE) and not outgoing.doubtful(submit.function)
    assert outgoing.best(submit.function).packed.plan == Packer().pack(slow).plan
    spool.close()


def test_two_that_look_at_once_find_the_same(file: Path) -> None:
    """A call is repaired while the rest is looked at.  A pipe in the place of a file holds the first look."""
    session()[0].look()
    data = file.with_suffix(".dat")
    os.mkfifo(data)
    memory, packer, packed = session()
    other = packer.pack(function, imports=["json"])
    settled: list[Packed] = []
    threads = [threading.Thread(target=lambda one=one: settled.append(packer.settle(one))) for one in (packed, other)]
    for thread in threads:
        thread.start()
    with data.open("w") as pipe:  # somebody reads it now
        pipe.write("different")
    for thread in threads:
        thread.join(PATIENCE)
    assert memory.generation == 1
    assert len(settled) == 2 and {one.plan.key for one in settled}.isdisjoint({packed.plan.key, other.plan.key})


def test_what_cannot_be_looked_at_does_not_leave(file: Path, tmp_path: Path) -> None:
    session()[0].look()
    looked = threading.Event()
    spool = Spool(tmp_path)
    outgoing = Outgoing(spool, looked.set)
    kept = file.read_text()
    submit, _ = outgoing.submit(TaskId("a"), slow, [((Slow(file.unlink),), {})], False, Options(), 0)
    assert looked.wait(PATIENCE) and not outgoing.doubtful(submit.function)
    with pytest.raises(AnalysisError, match=NAME):
        outgoing.best(submit.function)

    file.write_text(kept)  # it is there again
    looked.clear()
    again, _ = outgoing.submit(TaskId("b"), slow, [((), {})], False, Options(), 0)
    assert not outgoing.doubtful(again.function) or looked.wait(PATIENCE)
    assert outgoing.best(again.function).packed.plan.key == Packer().pack(slow).plan.key
    spool.close()

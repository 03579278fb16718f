"""What the manager writes down comes back as it was, and what is forgotten does not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lfm.protocol import messages as m
from lfm.protocol.ids import EnvironmentKey, FunctionId, TaskId
from lfm.protocol.outcomes import Inline, Returned
from lfm.protocol.resources import Request, Resources, Usage
from lfm_manager.core import commands as c
from lfm_manager.shell.history import KEPT, History
from lfm_manager.shell.store import FORGOTTEN, Store, StoreFailed, file_system

HELLO = m.ClientHello("s", "me", "here", 1)
ENVIRONMENT = m.DeclareEnvironment(EnvironmentKey("e"), Inline(b"{}"), "numpy")
FUNCTION = m.DeclareFunction(FunctionId("f"), "mod.f", "mod.f", EnvironmentKey("e"), Inline(b"code"), None, ("numpy",))


def submit(n: int) -> m.Submit:
    return m.Submit(TaskId(f"s-{n}"), FunctionId("f"), Inline(b"x"), Request(memory=5))


def finished(n: int) -> m.Finished:
    return m.Finished(TaskId(f"s-{n}"), Returned(Inline(b"v")), Usage(), Resources(), ())


def write(store: Store, *commands: object) -> None:
    for command in commands:
        store.write(command)  # type: ignore[arg-type]
    store.commit()


def filled(path: Path, calls: int) -> Store:
    store = Store(path)
    write(store, c.SaveSession("s", HELLO), c.SaveDeclared(ENVIRONMENT), c.SaveDeclared(FUNCTION))
    write(store, *(c.SaveTask("s", submit(n)) for n in range(calls)))
    return store


def test_an_empty_store_has_nothing_to_recover(tmp_path: Path) -> None:
    store = Store(tmp_path / "lfm.db")
    assert store.recover(()) is None
    store.close()


def test_what_was_committed_comes_back_in_order_and_the_rest_does_not(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 12)
    write(store, c.SaveAttempt(TaskId("s-0"), 1, "w"), c.SaveAttempt(TaskId("s-1"), 3, "v"), c.SaveResult(finished(1)))
    store.write(c.SaveResult(finished(2)))  # and then the power goes
    again = Store(tmp_path / "lfm.db")
    found = again.recover(())
    assert found is not None
    assert found.environments == (ENVIRONMENT,) and found.functions == (FUNCTION,)
    (session,) = found.sessions
    assert session.hello == HELLO and [t.submit for t in session.tasks] == [submit(n) for n in range(12)]
    assert [(t.attempt, t.worker, t.finished) for t in session.tasks[:3]] == [(1, "w", None), (3, "v", finished(1)), (0, "", None)]
    again.close()
    store.close()


def test_what_nobody_uses_does_not_come_back_unless_it_was_said_again(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", 0)
    write(store, c.ForgetDeclared(ENVIRONMENT.key), c.ForgetDeclared(FUNCTION.function), c.SaveDeclared(ENVIRONMENT))
    store.close()
    found = Store(tmp_path / "s").recover(())
    assert found is not None and found.environments == (ENVIRONMENT,) and found.functions == ()


def test_what_must_not_come_back_goes_with_the_next_commit(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 3)
    write(store, c.ForgetTask(TaskId("s-0")))
    store.forget()
    store.commit()
    write(store, c.ForgetTask(TaskId("s-1")))  # in time, and then the power goes
    found = Store(tmp_path / "lfm.db").recover(())
    assert found is not None and [t.submit.task for t in found.sessions[0].tasks] == ["s-1", "s-2"]
    store.close()


def test_a_call_that_was_forgotten_and_is_submitted_once_more_is_a_new_one(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 1)
    write(store, c.SaveAttempt(TaskId("s-0"), 2, "w"), c.SaveResult(finished(0)))
    write(store, c.ForgetTask(TaskId("s-0")))
    write(store, c.SaveTask("s", submit(0)))
    store.forget()
    store.commit()
    found = Store(tmp_path / "lfm.db").recover(())
    assert found is not None
    assert [(t.submit.task, t.attempt, t.finished) for t in found.sessions[0].tasks] == [("s-0", 0, None)]
    store.close()


def test_what_is_over_is_removed_in_one_transaction_when_the_store_is_closed(tmp_path: Path) -> None:
    store, said = filled(tmp_path / "lfm.db", 20), list[str]()
    write(store, *(c.ForgetTask(TaskId(f"s-{n}")) for n in range(20)))
    store._db.set_trace_callback(said.append)
    store.close()
    kinds = [line.split()[0] for line in said]
    assert kinds == ["BEGIN", *["DELETE"] * 60, "COMMIT"]
    again = Store(tmp_path / "lfm.db")
    found = again.recover(())
    assert found is not None and found.sessions[0].tasks == ()
    again.close()


def test_calls_of_a_session_that_is_over_are_removed_when_a_manager_comes_back(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 2)
    write(store, c.SaveAttempt(TaskId("s-0"), 1, "w"), c.SaveResult(finished(0)))
    write(store, c.ForgetTask(TaskId("s-0")), c.ForgetTask(TaskId("s-1")), c.ForgetSession("s"))
    again = Store(tmp_path / "lfm.db")  # the first was killed
    found = again.recover(())
    assert found is not None and not found.sessions
    with sqlite3.connect(tmp_path / "lfm.db") as db:
        assert [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("tasks", "attempts", "results")] == [(0,)] * 3
    db.close()
    again.close()
    store.close()


def test_what_is_large_stays_in_the_store_until_it_is_asked_for(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 0)
    large = m.Submit(TaskId("s-1"), FunctionId("f"), Inline(b"x" * 5000), Request(memory=5))
    ended = m.Finished(TaskId("s-2"), Returned(Inline(b"v" * 5000)), Usage(), Resources(), (), b"out")
    store.write(c.SaveTask("s", large))
    store.write(c.SaveTask("s", submit(2)))
    store.write(c.SaveResult(ended))
    for _ in range(2):  # before it is written, and after
        assert store.arguments(TaskId("s-1")) == large.arguments and store.finished(TaskId("s-2")) == ended
        assert store.arguments(TaskId("s-2")) == submit(2).arguments and store.arguments(TaskId("s-7")) is None
        assert store.keeps(TaskId("s-2")) and not store.keeps(TaskId("s-1"))
        store.commit()
    write(store, c.SaveTask("s", m.Submit(TaskId("s-1.1"), FunctionId("f"), Inline(b""), Request()), TaskId("s-1")))
    store.close()
    again = Store(tmp_path / "lfm.db")
    found = again.recover(())
    assert found is not None
    first, second, copy = found.sessions[0].tasks
    assert first.submit.arguments == Inline(b"") and first.kept_size == 5000 and again.arguments(TaskId("s-1")) == large.arguments
    assert second.kept and second.finished is not None and second.finished.outcome == Returned(Inline(b""))
    assert again.finished(TaskId("s-2")) == ended and second.submit == submit(2)
    assert copy.kept_size == 5000 and again.arguments(TaskId("s-1.1")) == large.arguments
    again.close()


def test_a_store_whose_file_was_removed_knows_it(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 1)
    assert store.is_there()
    (tmp_path / "lfm.db").unlink()
    assert not store.is_there()
    Store(tmp_path / "lfm.db").close()
    assert not store.is_there()  # another one in its place is not ours
    store.close()


def test_what_comes_and_goes_between_two_commits_is_never_written(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", 0)
    write(store, c.SaveTask("s", submit(1)), c.SaveAttempt(TaskId("s-1"), 1, "w"), c.SaveResult(finished(1)), c.ForgetTask(TaskId("s-1")))
    found = store.recover(())
    assert found is not None and found.sessions[0].tasks == ()
    store.close()


def test_what_is_forgotten_goes_at_the_end_or_when_it_is_much(tmp_path: Path) -> None:
    store = filled(tmp_path / "lfm.db", FORGOTTEN + 5)
    write(store, *(c.ForgetTask(TaskId(f"s-{n}")) for n in range(FORGOTTEN)))
    found = store.recover(())
    assert found is not None and len(found.sessions[0].tasks) == 5
    write(store, c.ForgetTask(TaskId(f"s-{FORGOTTEN}")), c.ForgetSession("other"))
    store.close()
    again = Store(tmp_path / "lfm.db")
    found = again.recover(())
    assert found is not None and len(found.sessions[0].tasks) == 4
    again.close()


def test_a_store_of_another_version_or_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "lfm.db")
    store._db.execute("UPDATE meta SET value = '0'")
    store.close()
    with pytest.raises(StoreFailed, match="another version"):
        Store(tmp_path / "lfm.db")
    (tmp_path / "text").write_text("nonsense " * 1000)
    with pytest.raises(StoreFailed, match="cannot use"):
        Store(tmp_path / "text")


def test_the_file_system_is_known(tmp_path: Path) -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(tmp_path)


def test_the_history_keeps_the_latest_of_each_category(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    for n in range(3 * KEPT):
        used = Usage(wall_s=1.0, memory=n, memory_by="self")
        history.add("run", 0.0, c.SaveMeasurement("a", n, Resources(), used, "returned"), 0.0)
        if n % 100 == 0:
            history.write()
    history.add("run", 0.0, c.SaveMeasurement("b", 7, Resources(), Usage(), "returned"), 0.0)
    assert history.deadline() is not None
    history.write()
    assert history.deadline() is None
    found = list(history.measurements())
    assert [x.usage.memory for x in found if x.category == "a"] == list(range(2 * KEPT, 3 * KEPT))
    assert history.forget("a") == KEPT and [x.category for x in history.measurements()] == ["b"]
    history.close()

"""The monitor's parts that need no process: messages, the bounded capture, and what is ever removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lfm.ending import outcome_of, usage_of
from lfm.monitor import capture, host, page, sandbox, wire
from lfm.protocol.outcomes import Blob, Crashed, Exhausted, Inline, Killed, Lost, Raised, Returned

COARSE = 5  # CLOCK_REALTIME_COARSE: the clock of files' times
MB = 1 << 20
NOTHING = wire.Report(*[0] * len(wire.Report._fields))


def told(kind: int, data: bytes = b"", size: int = 0, texts: tuple[bytes, ...] = wire.NO_TEXTS) -> bytes:
    return wire.result(7, 0, -1, kind, size, texts, (data,)) + bytes(page.FIGURES_SIZE)


def test_messages_come_back_as_they_were() -> None:
    limits = wire.Limits(1 << 40, 5, 2.5, 3, True, True)
    assert wire.read_watch(wire.watch(9, 1.5, limits, "/a/b")) == (9, 1.5, limits, "/a/b")
    assert wire.read_raise(wire.raise_memory(9, 1 << 41)) == (9, 1 << 41)
    assert wire.read_near(wire.near(9, 1, 2)) == (9, 1, 2)
    report = NOTHING._replace(id=3, status=9, limit=1.5, stdout=1 << 40)
    assert wire.read_report(wire.report(report)) == report
    owned = sandbox.Owned("/x/y", 1 << 33, 5)
    assert wire.read_clean(wire.clean(owned)) == owned


def test_a_result_is_read_as_it_was_told() -> None:
    result = wire.read_result(told(wire.RAISED, b"pickle", texts=(b"E", b"text", b"trace", b"call", b"")))
    assert result.texts[:4] == ("E", "text", "trace", "call") and result.data == b"pickle"


@pytest.mark.parametrize("junk", [b"", b"x", told(wire.RETURNED)[:-1], told(wire.RETURNED) + b"x", told(99), bytes(200)])
def test_junk_is_no_result(junk: bytes) -> None:
    with pytest.raises(ValueError, match="not a result"):
        wire.read_result(junk)


@pytest.mark.parametrize(
    ("report", "message", "lost", "expected"),
    [
        (NOTHING._replace(flags=1), told(wire.RETURNED, b"v"), "", Returned(Inline(b"v"))),
        (NOTHING._replace(flags=1), told(wire.RETURNED, b"", 5, (*wire.NO_TEXTS[:4], b"d")), "", Returned(Blob("d", 5))),  # type: ignore[arg-type]
        (NOTHING._replace(flags=1, status=9, verdict=1, limit=2.0, measured=3.0, at_s=1.0), None, "",
         Exhausted("memory", 2.0, 3.0, 1.0)),
        (NOTHING._replace(flags=1, status=9, verdict=5), told(wire.RETURNED, b"v"), "", Killed()),
        (NOTHING._replace(flags=1, status=11), None, "", Crashed(11, None)),
        (NOTHING._replace(flags=1, status=3 << 8), None, "", Crashed(None, 3)),
        (NOTHING, None, "gone", Lost("gone", started=False)),
        (None, None, "gone", Lost("gone", started=True)),
    ],
)  # fmt: skip
def test_the_outcome(report: wire.Report | None, message: bytes | None, lost: str, expected: object) -> None:
    result = wire.read_result(message) if message else None
    assert outcome_of(host.Over(7, result, report, lost)) == expected


def test_an_exception_keeps_its_stage() -> None:
    over = host.Over(7, wire.read_result(told(wire.RAISED, texts=(b"E", b"", b"", b"dump", b""))), NOTHING)
    assert outcome_of(over) == Raised(None, "E", "", "", "dump")


@pytest.mark.parametrize("total", [0, 10, capture.HEAD, capture.HEAD + capture.TAIL, 1_000_000, 1_234_567])
def test_the_capture_keeps_head_and_tail(total: int) -> None:
    sent = bytes(n * 7 % 251 for n in range(1000)) * (total // 1000 + 1)
    sent = sent[:total]
    file = os.memfd_create("test")
    stream = capture.Capture(file)
    for at in range(0, total, 30_000):
        os.write(stream.write_end, sent[at : at + 30_000])
        stream.pump()
    assert stream.total == total
    kept = capture.read(file, total)
    if total <= capture.HEAD + capture.TAIL:
        assert kept == sent
    else:
        assert kept.startswith(sent[: capture.HEAD]) and kept.endswith(sent[-capture.TAIL :])
        assert b"%d bytes left out" % (total - capture.HEAD - capture.TAIL) in kept
    for fd in (file, stream.read_end, stream.write_end):
        os.close(fd)


# -- what is ever removed


def test_only_an_empty_directory_by_its_full_path_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    (full / "sub").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(full / "sub")
    monkeypatch.chdir(full / "sub")
    for path in (str(full), ".", "", "sub", str(link), str(tmp_path / "absent")):
        with pytest.raises((ValueError, OSError)):
            sandbox.own(path)
    assert sandbox.own(str(full / "sub")).path == str(full / "sub")


def test_removal_takes_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "file").write_text("stays")
    box = tmp_path / "box"
    box.mkdir()
    owned = sandbox.own(str(box))
    (box / "a" / "b").mkdir(parents=True)
    (box / "a" / "b" / "f").write_bytes(bytes(100_000))
    (box / "link").symlink_to(outside)
    (box / "a" / "b").chmod(0)
    box.chmod(0)
    assert sandbox.remove(owned) >= 100_000
    assert not box.exists() and (outside / "file").read_text() == "stays"
    assert outside.stat().st_mode & 0o777 == 0o750


def test_another_directory_in_its_place_is_left_alone(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    owned = sandbox.own(str(box))
    box.rename(tmp_path / "moved")
    box.mkdir()
    (box / "mine").write_text("stays")
    assert sandbox.remove(owned) == 0
    assert (box / "mine").exists()
    box.rename(tmp_path / "other")
    box.symlink_to(tmp_path / "other")
    assert sandbox.remove(owned) == 0
    assert (tmp_path / "other" / "mine").exists()


def test_a_directory_left_untouched_is_used_again_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    box = sandbox.Box(str(tmp_path))
    first = box.take()
    path = Path(first.path)
    assert list(path.iterdir()) == [] and path.stat().st_mode & 0o777 == 0o700
    assert box.untouched() and box.take() == first
    box.close()
    assert not path.exists() and (tmp_path / "1").exists()

    def litter_and_hide(path: Path) -> None:
        (path / "file").touch()
        os.utime(path, ns=(0, 0))

    def replace(path: Path) -> None:
        path.rename(tmp_path / "moved")
        path.mkdir()

    seen = {first.path}
    for change in (litter_and_hide, lambda path: (path / "file").touch(), lambda path: path.chmod(0o755), replace, Path.rmdir):
        path = Path(box.take().path)
        assert box.untouched() and str(path) not in seen
        seen.add(str(path))
        tick = time.clock_gettime(COARSE)
        while time.clock_gettime(COARSE) == tick:
            pass
        change(path)
        assert not box.untouched()
        box.forget()


@pytest.mark.parametrize(
    ("by", "processes", "children", "expected"),
    [
        ("poll", 1, 0, (90, 100, "self", 1)),  # its own figures are exact
        ("poll", 1, 60, (90, 160, "poll", 2)),  # it had a child that nobody saw
        ("poll", 2, 60, (90, 150, "poll", 2)),  # or that was seen as large as it became
        ("poll", 2, 400, (90, 500, "poll", 2)),  # or smaller
        ("cgroup", 1, 0, (90, 100, "self", 1)),
        ("cgroup", 1, 60, (80, 150, "cgroup", 2)),
        ("cgroup", 3, 0, (80, 150, "cgroup", 3)),
    ],
)
def test_memory_by_whoever_knows_it_best(by: str, processes: int, children: int, expected: tuple[int, int, str, int]) -> None:
    figures = page.Figures(1.0, 1.0, 90 * MB, 100 * MB, children * MB, 20 * MB, False, 0, b"")
    result = wire.Result(wire.RETURNED, 7, figures, 0, ("",) * 5, b"v")
    report = NOTHING._replace(flags=wire.STARTED, memory_low=80 * MB, memory_high=150 * MB, processes=processes)
    usage = usage_of(host.Over(7, result, report._replace(memory_by=wire.MEMORY_BY.index(by))))
    assert usage is not None
    assert (usage.memory_low // MB, usage.memory // MB, usage.memory_by, usage.processes) == expected

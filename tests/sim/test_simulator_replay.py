"""Reading traces, replaying them, and the command that does both."""

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lfm_manager.simulator.cli import simulate
from lfm_manager.simulator.replay import replay
from lfm_manager.simulator.trace import BadTrace, Call, read_trace
from lfm_manager.sizing import STRATEGIES, make

HEADER = "category,input_size_bytes,wall_s,cores,memory_mb,preset_memory_mb\n"
GB = 1e9
HOUR = 3600.0


def call(memory: float, *, category: str = "a", hint: float | None = None, wall_s: float = HOUR) -> Call:
    return Call(category, 0.0, wall_s, 1.0, memory, 0.0, hint)


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_read_plain_and_gzipped(tmp_path: Path) -> None:
    text = HEADER + "fit,12,3.5,2,100,\nfit,,0,,7.5,200\n"
    calls = read_trace(written(tmp_path, text))
    assert calls == [
        Call("fit", 12.0, 3.5, 2.0, 100e6, 0.0, None),
        Call("fit", 0.0, 0.0, 1.0, 7.5e6, 0.0, 200e6),
    ]
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_trace(packed) == calls


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fit,1,x,1,1,1", "line 3: wall_s is 'x'"),
        ("fit,1,1,1,-4,1", "line 3: memory_mb is -4"),
        ("fit,1,nan,1,1,1", "line 3: wall_s is nan"),
        ("fit,1,1", "line 3: not as many fields"),
        ("fit,1,1,1,1,1,1,1", "line 3: not as many fields"),
        ("fit,1,,1,1,1", "line 3: wall_s is ''"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(BadTrace, match=complaint):
        read_trace(written(tmp_path, f"{HEADER}fit,1,1,1,1,1\n{line}\n"))


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="no column wall_s"):
        read_trace(written(tmp_path, "category,memory_mb\na,1\n"))
    with pytest.raises(BadTrace, match="cannot be read"):
        read_trace(tmp_path / "absent.csv")
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(HEADER.encode() * 99)[:40])
    with pytest.raises(BadTrace, match="cannot be read"):
        read_trace(cut)


def test_waste_by_hand() -> None:
    # fixed at 4 GB: 3 GB unused for an hour
    tally = replay([call(1 * GB, hint=4 * GB)], make("fixed", "memory"), 128 * GB)
    assert tally.waste_gb_h == pytest.approx(3)
    assert tally.efficiency == pytest.approx(0.25)
    # auto from 1 GB: 1 fails, 2 fails, 4 leaves one unused
    tally = replay([call(3 * GB)], make("auto", "memory"), 128 * GB)
    assert (tally.failures, tally.waste_gb_h) == (2, pytest.approx(1 + 2 + 1))


def test_results_are_known_when_as_many_later_calls_are_out() -> None:
    calls = [call(10 * GB)] * 4  # max-seen: a whole worker until a result is known, then 10.25 GB
    wastes = [replay(calls, make("max-seen", "memory"), 20 * GB, k).waste_gb_h for k in (1, 2, 4)]
    assert wastes == pytest.approx([10 + 3 * 0.25, 20 + 2 * 0.25, 40])


def test_a_call_larger_than_any_worker_is_counted_and_ends() -> None:
    tally = replay([call(9 * GB), call(1 * GB)], make("auto", "memory"), 8 * GB)
    assert tally.hopeless == 1
    assert tally.failures == 4  # 1, 2, 4, 8


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_replays_anything(name: str) -> None:
    calls = [call((k * 37 % 101) * 1e8, category=f"c{k % 5}", wall_s=k % 7) for k in range(300)]
    tally = replay(calls, make(name, "memory"), 16 * GB, 8)
    assert tally.calls == 300
    assert 0 < tally.efficiency <= 1


def test_auto_wastes_less_than_bucketing_where_input_size_tells() -> None:
    sizes = [(1 + k * 61 % 97) * 1e6 for k in range(300)]
    calls = [Call("fit", x, 60.0, 1.0, 50 * x, 0.0, None) for x in sizes]
    waste = {s: replay(calls, make(s, "memory"), 64 * GB).wasted for s in ("auto", "exhaustive-bucketing")}
    assert waste["auto"] < 0.3 * waste["exhaustive-bucketing"]


def test_command_prints_json(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "fit,1,3600,1,500,2000\n" * 5)
    ran = CliRunner().invoke(simulate, [str(path), "--strategy", "fixed", "--in-flight", "3", "--json"])
    assert ran.exit_code == 0
    body = json.loads(ran.stdout)
    assert body["schema"] == "lfm.simulate/1"
    assert body["strategy"] == "fixed"
    assert body["calls"] == 5
    assert body["waste_gb_h"] == pytest.approx(7.5)
    assert body["efficiency"] == pytest.approx(0.25)
    assert {"failures", "makespan_s", "oracle_makespan_s"} <= set(body)


def test_command_compares_for_people(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "fit,1,3600,1,500,2000\n" * 5)
    ran = CliRunner().invoke(simulate, [str(path)])
    assert ran.exit_code == 0
    assert "auto" in ran.stdout and "as asked" in ran.stdout and "unmanaged" in ran.stdout


def test_command_fails_in_one_line(tmp_path: Path) -> None:
    ran = CliRunner().invoke(simulate, [str(written(tmp_path, HEADER + "fit,1,x,1,1,1\n"))])
    assert ran.exit_code == 1
    assert "line 2: wall_s" in ran.stderr
    ran = CliRunner().invoke(simulate, [str(written(tmp_path, HEADER))])
    assert ran.exit_code == 1
    assert "no calls" in ran.stderr

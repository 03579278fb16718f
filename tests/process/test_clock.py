"""A wall clock that jumps changes nothing: every deadline is monotonic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfm.testing import LocalCluster, wait_until

pytestmark = pytest.mark.process
YEAR = 365 * 86400.0
JUMPS = '''
import os, time
_real, _shift = time.time, os.environ["LFM_TEST_SHIFT"]
def _jumping():
    with open(_shift) as file:
        return _real() + float(file.read())
time.time = _jumping
'''


class Clock:
    """Seconds by which the clocks of manager, worker and this process are off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shift(0.0)

    def shift(self, seconds: float) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.rename(self.path)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made, real = Clock(tmp_path / "shift"), time.time
    (tmp_path / "sitecustomize.py").write_text(JUMPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LFM_TEST_SHIFT", str(made.path))
    monkeypatch.setattr(time, "time", lambda: real() + float(made.path.read_text()))
    yield made


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_a_clock_that_jumps_by_years_changes_nothing(clock: Clock) -> None:
    with LocalCluster(1, cores=2) as cluster, cluster.executor() as executor:
        assert executor.submit(nap, 0.0).result(120) == 0.0
        futures = [executor.submit(nap, 0.2) for _ in range(12)]
        for shift, future in ((YEAR, futures[1]), (-2 * YEAR, futures[4]), (0.0, futures[7])):
            wait_until(future.done, "one more")
            clock.shift(shift)
        assert [f.result(120) for f in futures] == [0.2] * 12
        for future in futures:
            (attempt,) = future.attempts
            assert 0.0 <= attempt.ended - attempt.started < 60.0
        clock.shift(YEAR)
        status = executor.status()
        assert len(status.workers) == 1 and not status.alerts and executor.submit(nap, 0.1).result(120) == 0.1
        assert cluster.manager is not None and cluster.manager.stdin is not None
        cluster.manager.kill()
        cluster.manager.wait()
        cluster.manager.stdin.close()
        clock.shift(-YEAR)  # and while the manager is away
        running = executor.submit(nap, 0.3)
        cluster.start_manager()
        assert running.result(120) == 0.3 and len(running.attempts) == 1

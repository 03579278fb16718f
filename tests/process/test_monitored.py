"""``lfm.monitored``: one call, measured and bounded, with no manager."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest

import lfm
from lfm import alone
from lfm.errors import CallCrashed, ResourceExhausted

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.process


def _fail(value: int) -> None:
    raise ValueError(value)


def test_value_exception_limit_and_crash(capsys: pytest.CaptureFixture[str]) -> None:
    value, usage = lfm.monitored(sorted, [2, 1], reverse=True)
    assert value == [2, 1] and usage.wall_s > 0 and usage.processes == 1
    with pytest.raises(ValueError, match="7") as raised:
        lfm.monitored(_fail, 7)
    assert __file__ in str(raised.value.__cause__)  # where it lies, though it was sent by value
    with pytest.raises(ResourceExhausted) as exhausted:
        lfm.monitored(time.sleep, 60, wall_time=0.2)
    assert exhausted.value.resource == "wall_time"
    with pytest.raises(CallCrashed) as crashed:
        lfm.monitored(sys.modules["os"]._exit, 5)
    assert crashed.value.exit_code == 5
    lfm.monitored(print, "heard")
    assert capsys.readouterr().out == "heard\n"


def test_a_thread_that_ends_takes_no_template_along() -> None:
    found: list[tuple[int, int]] = []

    def once() -> None:
        found.append((lfm.monitored(max, 1, 2)[0], alone._bench().host.pid))

    with alone._lock:  # so that a thread is the first
        for one in alone._current:
            one.close()
        alone._current.clear()
    for _ in range(2):
        thread = threading.Thread(target=once)
        thread.start()
        task = Path(f"/proc/self/task/{thread.native_id}")
        thread.join()
        while task.exists():  # it is a moment behind
            time.sleep(0.001)
    once()
    assert [value for value, _ in found] == [2, 2, 2] and len({pid for _, pid in found}) == 1
    os.kill(found[0][1], signal.SIGKILL)  # between two calls it is nobody's loss
    os.waitid(os.P_PID, found[0][1], os.WEXITED | os.WNOWAIT)
    once()
    assert found[-1] == (2, alone._bench().host.pid)

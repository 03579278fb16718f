"""``lfm.monitored``: one call, measured and bounded, with no manager."""

from __future__ import annotations

import sys
import time

import cloudpickle
import pytest

import lfm
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

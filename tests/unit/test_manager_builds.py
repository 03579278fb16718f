"""Builds that cannot even be begun."""

import math
import tempfile
from pathlib import Path

import pytest
import zmq

from lfm.protocol.ids import EnvironmentKey
from lfm_manager.core.events import EnvironmentFailed
from lfm_manager.environments.store import Store
from lfm_manager.shell.builds import TRIES, Builds


def test_a_build_for_which_a_file_is_missing_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "removed"))
    builds = Builds(zmq.Poller(), store=Store(tmp_path / "store"))
    assert builds.want(EnvironmentKey("a" * 64), b"{}") is None and "no environment can be built now" in builds.trouble
    answers = [answer for _ in range(TRIES) for answer in builds.retry()]
    assert [type(answer) for answer in answers] == [EnvironmentFailed]
    assert "cannot start a build" in answers[0].reason and "removed" in answers[0].reason
    assert builds.deadline() == math.inf and not builds.trouble
    builds.close()

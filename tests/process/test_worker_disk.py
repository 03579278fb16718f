"""A worker whose disk is full: said so, its calls go elsewhere, and what fits runs.  On a small file system of the test's own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm.blobs import BlobStore
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Lost
from lfm_worker.core import events as e
from lfm_worker.core.commands import StartTemplate
from lfm_worker.shell.interpreters import Interpreters
from lfm_worker.shell.places import Cache, Home
from lfm_worker.shell.transfers import Transfers

pytestmark = pytest.mark.process
MB = 10**6


def _load() -> Any:
    """The manager that is a test, from the file beside this one."""
    name = "lfm_test_worker"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("test_worker.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worker = _load()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_an_interpreter_that_cannot_be_started_for_want_of_room_is_not_its_environments_fault(small: Path) -> None:
    cache, told = Cache(small / "work"), list[e.Event]()
    home = Home(cache, "w")
    transfers = Transfers(BlobStore(home / "blobs"), BlobStore(home / "results"), cache.blobs)
    interpreters = Interpreters(
        home, cache, transfers, 1, tell=told.append, watch=lambda fd, heard: None, unwatch=lambda fd: None
    )  # fmt: skip
    try:
        with pytest.raises(OSError), open(small / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        interpreters.start(StartTemplate(1, Digest("a" * 64), ()))
        assert [(type(event), event.passing) for event in told if isinstance(event, e.TemplateEnded)] == [(e.TemplateEnded, True)]
    finally:
        home.remove()


def test_what_does_not_fit_goes_elsewhere_and_what_fits_runs(tmp_path: Path, small: Path) -> None:
    manager = worker.Manager(tmp_path)
    daemon = worker.Daemon(manager, small / "work")
    try:
        manager.wait_joined()
        too_large = manager.environment("fetch", data=os.urandom(10 * MB))  # the tarball alone does not fit
        too_wide = manager.environment("unpack", data=os.urandom(5 * MB))  # the tarball fits, its content does not
        for n, environment in enumerate((too_large, too_wide)):
            manager.submit(f"t{n}", manager.define(worker.add, environment), n, 1)
            lost = manager.wait_said(m.CallEnded, f"t{n}").outcome
            assert isinstance(lost, Lost) and not lost.started and "space" in lost.reason
        unusable = [said.digest for said in manager.heard if isinstance(said, m.EnvironmentUnusable)]
        assert unusable == [too_large.digest, too_wide.digest]
        manager.submit("fits", manager.define(worker.add, manager.environment()), 1, 1)
        assert manager.result("fits") == 2
        daemon.process.terminate()
        assert daemon.wait_gone(manager) == 0
        assert list((small / "work" / "workers").iterdir()) == []
    finally:
        daemon.end()
        manager.close()

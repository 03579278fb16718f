"""Finding a run, and refusing one that is not private."""

import os
import tempfile
from pathlib import Path

import pytest

from lfm.errors import ConnectionFailed
from lfm.run import EMBEDDED, ConnectionFile, RunDirectory, find_embedded, find_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setenv("LFM_HOME", str(tmp_path))
    monkeypatch.delenv("LFM_RUN", raising=False)
    return RunDirectory.create(tmp_path / "runs" / "thesis", "thesis")


def test_found_by_every_name(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.publish(["tcp://127.0.0.1:1"])
    by_name = find_run("thesis", "worker")
    assert by_name.role == "worker"
    assert find_run(run.path, "worker") == find_run(run.path / "worker.json", "client") == by_name
    assert find_run(None, "client") == find_run("thesis", "client")
    monkeypatch.setenv("LFM_RUN", "thesis")
    assert find_run(None, "viewer").role == "viewer"


def test_a_script_s_own_is_found_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert find_embedded("viewer") is None
    for age, name in enumerate(("new", "old")):
        one = RunDirectory.create(tmp_path / f"{EMBEDDED}{name}", name)
        one.publish(["tcp://127.0.0.1:1"])
        os.utime(one.connection_file("viewer"), (1000 - age, 1000 - age))
    dead = RunDirectory.create(tmp_path / f"{EMBEDDED}dead", "dead")
    dead.publish(["tcp://127.0.0.1:1"])
    file = dead.connection_file("viewer")
    file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {2**22 + 1}'))  # beyond all numbers of processes
    found = find_embedded("viewer")
    assert found is not None and found.run == "new" and found.role == "viewer"


def test_keys_and_identity_last(run: RunDirectory) -> None:
    again = RunDirectory.create(run.path, "another name")
    assert (again.name, again.server_id, again.server_keys) == (run.name, run.server_id, run.server_keys)
    run.publish([])
    key = ConnectionFile.read(run.connection_file("worker")).public_key
    assert again.role_of(key.encode()) == "worker"
    assert again.role_of(b"x" * 40) is None


def test_errors_name_the_way_out(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="lfm manager start"):
        find_run()
    with pytest.raises(ConnectionFailed, match=r"no run named 'theses'.*there are: thesis"):
        find_run("theses")
    with pytest.raises(ConnectionFailed, match="not running"):
        find_run("thesis")
    with pytest.raises(ConnectionFailed, match="neither"):
        find_run(tmp_path / "nothing" / "here")


def test_what_others_can_read_is_refused(run: RunDirectory) -> None:
    run.publish(["tcp://127.0.0.1:1"])
    file = run.connection_file("client")
    file.chmod(0o640)
    with pytest.raises(ConnectionFailed, match="chmod 600"):
        ConnectionFile.read(file)
    run.path.chmod(0o750)
    with pytest.raises(ConnectionFailed, match="chmod 700"):
        RunDirectory.open(run.path)
    run.path.chmod(0o700)


def test_broken_files_are_refused(run: RunDirectory) -> None:
    file = run.connection_file("client")
    for text in ("", "[]", "{}", '{"addresses": 3}'):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(ConnectionFailed):
            ConnectionFile.read(file)

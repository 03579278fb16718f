"""Locks on files: the one who holds it is alone, though the file is removed and made anew."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from lfm.locks import lock, locked

PATIENCE = 60.0  # seconds: only reached when something hangs


def test_the_file_that_is_there_is_the_one_that_is_locked(tmp_path: Path) -> None:
    path, got = tmp_path / "lock", []
    for _ in range(20):
        first = lock(path, fcntl.LOCK_EX)
        other = threading.Thread(target=lambda: got.append(lock(path, fcntl.LOCK_EX)))
        other.start()  # waits for the file, or comes when it is gone
        path.unlink()
        os.close(first)
        other.join(PATIENCE)
        mine = got.pop()
        assert os.path.samestat(os.fstat(mine), path.stat())
        with pytest.raises(BlockingIOError):
            lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(mine)


def test_a_file_that_is_not_there_is_made_only_if_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "lock", fcntl.LOCK_EX, create=False)
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError):
        lock(tmp_path / "lock", fcntl.LOCK_SH | fcntl.LOCK_NB, create=False)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600

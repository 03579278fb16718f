"""What is noted of the files that went along with an environment."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from lfm.function import sent


def overlay(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_CACHE", str(tmp_path / "cache"))


def test_the_files_of_all_functions_are_known_the_latest_of_each() -> None:
    sent.note("key", "f", overlay("src/a.py", "src/p/b.py", "lib/cloudpickle/c.py"))
    sent.note("key", "g", overlay("src/d.py"))
    assert sent.noted("key") == ["a.py", "d.py", "p/b.py"]
    sent.note("key", "f", overlay("src/a.py"))
    assert sent.noted("key") == ["a.py", "d.py"]
    assert sent.noted("other") == []
    sent.forget("key")
    assert sent.noted("key") == []


def test_without_own_files_nothing_is_written(tmp_path: Path) -> None:
    sent.note("key", "f", None)
    sent.note("key", "f", overlay("lib/cloudpickle/c.py"))
    assert not (tmp_path / "cache").exists()


def test_a_note_that_cannot_be_written_or_read_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    sent.note("key", "f", overlay("src/a.py"))
    assert sent.noted("key") == []
    (tmp_path / "cache").unlink()
    sent.note("key", "f", overlay("src/a.py"))
    (tmp_path / "cache" / "sent" / "key.json").write_text("[1")
    assert sent.noted("key") == []

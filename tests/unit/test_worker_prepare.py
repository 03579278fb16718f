"""Small overlays, unpacked beside the worker's loop."""

import hashlib
import io
import select
import tarfile
from pathlib import Path

from lfm.protocol.ids import Digest
from lfm_worker.core import events as e
from lfm_worker.core.items import Item
from lfm_worker.shell.prepare import InThread


def archive(files: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for number in range(files):
            member = tarfile.TarInfo(f"src/own/m{number}.py")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"x=1\n"))
    return data.getvalue()


def over(data: bytes, into: Path) -> e.Prepared | e.PrepareFailed | None:
    one = InThread(Item("overlay", Digest(hashlib.sha256(data).hexdigest())), data, into)
    assert select.select([one.fileno()], [], [], 60)[0]
    return one.receive()


def test_hundreds_of_files_are_there_when_it_says_so(tmp_path: Path) -> None:
    data = archive(300)
    event = over(data, tmp_path)
    assert isinstance(event, e.Prepared) and event.size == len(data)
    assert len(list((tmp_path / event.item.digest / "src" / "own").iterdir())) == 300


def test_a_damaged_one_leaves_nothing(tmp_path: Path) -> None:
    event = over(archive(300)[:-500], tmp_path)
    assert isinstance(event, e.PrepareFailed) and event.cause == "corrupt" and not list(tmp_path.iterdir())

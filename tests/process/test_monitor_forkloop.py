"""The forker's loop in machine code: that it is what its source says, and that it does what it should."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from lfm.monitor import forkloop

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not forkloop.possible(), reason="no machine code here: calls are forked with os.fork"),
]
PATIENCE = 60.0


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="no assembler")
def test_the_code_is_its_source_assembled(tmp_path: Path) -> None:
    source = Path(forkloop.__file__).with_suffix(".S")
    subprocess.run(["as", "-o", tmp_path / "code.o", source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "code.o", tmp_path / "code"], check=True)
    assert forkloop.CODE.hex() == (tmp_path / "code").read_bytes().hex()


def test_each_f_makes_a_child_and_anything_else_ends_the_loop() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    # in a process of its own: a clone runs none of the handlers that this one relies on
    forker = os.fork()
    if forker == 0:
        try:
            forkloop.give_references()
            loop = forkloop.make(its.fileno(), page, 8, 16, 0)
            if not loop():
                page[32:40] = os.getpid().to_bytes(8, "little")
                os._exit(7)
            os._exit(page[8])
        finally:
            os._exit(1)
    its.close()
    ours.send(forkloop.FORK)
    end = time.monotonic() + PATIENCE
    while not page[32]:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert page[16:24] == page[32:40] != bytes(8)
    ours.send(b"w")
    assert os.waitstatus_to_exitcode(os.waitpid(forker, 0)[1]) == ord("w")
    ours.close()

"""The machine code of forkers and calls: that it is what its source says, and that it does what it should."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm.monitor import linux, native, page, wire

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not native.possible(), reason="no machine code here: calls are forked with os.fork"),
    # threads that other tests left in this process are not used in the fork
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="no assembler")
def test_the_code_is_its_source_assembled(tmp_path: Path) -> None:
    source = Path(native.__file__).with_suffix(".S")
    subprocess.run(["as", "-o", tmp_path / "code.o", source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "code.o", tmp_path / "code"], check=True)
    assert native.CODE.hex() == (tmp_path / "code").read_bytes().hex()
    names = subprocess.run(["nm", tmp_path / "code.o"], check=True, capture_output=True, text=True).stdout
    places = {name: int(at, 16) for at, _, name in map(str.split, names.splitlines())}
    assert [places[name] for name in ("loop", "receive", "measure", "answer")] == [
        native._LOOP, native._RECEIVE, native._MEASURE, native._ANSWER
    ]  # fmt: skip
    for name in ("ID", "PID", "SAID", "TROUBLE", "SIZE", "LEARN", "FILES", "BEFORE", "AFTER", "CHILDREN", "BEGAN", "ENDED", "PAGES", "QUIET", "HELD", "IO", "IOVEC", "PRINTED"):
        assert places[name] == getattr(page, f"{name}_AT"), name
    assert (places["FIGURES"], places["random"]) == (page.FIGURES_SIZE, len(native.CODE))


class Slot:
    """A forker without an interpreter around it, and what its children are to do."""

    def __init__(
        self, child: Callable[[native.Native], None], *, orphan: bool = False, pages: native.Pages | None = None
    ) -> None:
        self.asks, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.page, buffer = mmap.mmap(-1, mmap.PAGESIZE), bytearray(4096)
        page.NUMBER.pack_into(self.page, page.FILES_AT, 1)
        parent = os.getpid()
        # in a process of its own: a clone runs none of the handlers that this one relies on
        self.forker = os.fork()
        if self.forker:
            asked.close()
            its.close()
            return
        try:
            self.channel.close()
            self.asks.close()  # else its children wait for themselves when a test has failed
            signal.alarm(60)
            native.give_references()
            random.seed(1)
            made = native.make(
                self.page, its.fileno(), buffer, socket=asked.fileno(), parent=1 if orphan else parent,
                flags=linux.CLONE_PARENT, spots=native.random_spots(), pages=pages,
            )  # fmt: skip
            if not made.loop():
                child(made)
            os._exit(self.page[page.SAID_AT])
        finally:
            os._exit(99)

    def work(self, **work: object) -> None:
        self.channel.send(wire.work(wire.Work(**({"id": 7, "code": "", "arguments": b"", "result": "", "sandbox": ""} | work))))  # type: ignore[arg-type]

    def fork(self) -> None:
        self.asks.send(native.FORK)

    def end(self) -> tuple[int, int]:
        """Exit codes of child and forker."""
        self.asks.send(b"w")
        forker = os.waitstatus_to_exitcode(os.waitpid(self.forker, 0)[1])
        child = os.waitstatus_to_exitcode(os.waitpid(page.pid(self.page), linux.WALL)[1])
        self.asks.close()
        self.channel.close()
        return child, forker


def test_a_child_receives_measures_and_answers(tmp_path: Path) -> None:
    def child(path: native.Native) -> None:
        looked = path.receive()
        said = f"{looked} {Path.cwd()} {os.sched_getaffinity(0)} {random.random()}"
        path.measure()
        path.answer(said.encode())

    slot = Slot(child)
    cpu = min(os.sched_getaffinity(0))
    said = []
    for _ in range(2):
        slot.fork()
        slot.work(sandbox=str(tmp_path), cpus=(cpu,))
        data = slot.channel.recv(4096)
        figures = page.read_figures(data[-page.FIGURES_SIZE :], -1)
        assert 0 < figures.wall_s < 60 and 0 <= figures.memory_low <= figures.memory_high < 1 << 30
        said.append(data[: -page.FIGURES_SIZE].decode().rpartition(" "))
        if len(said) == 1:
            os.waitpid(page.pid(slot.page), linux.WALL)
    assert [one[0] for one in said] == [f"False {tmp_path} {{{cpu}}}"] * 2
    assert said[0][2] != said[1][2]  # not the number that comes after the seed 1, twice
    assert page.NUMBER.unpack_from(slot.page)[0] == 7
    assert slot.end() == (0, ord("w"))


def test_trouble_with_the_directory_is_told(tmp_path: Path) -> None:
    def child(path: native.Native) -> None:
        os._exit(3 if path.receive() else 4)

    slot = Slot(child)
    slot.fork()
    slot.work(sandbox=str(tmp_path / "none"))
    assert slot.end() == (3, ord("w"))


def test_memory_that_grew_is_worth_a_look() -> None:
    def child(path: native.Native) -> None:
        path.receive()
        before = path.measure()
        held = bytearray(b"x") * (8 << 20)
        os._exit(10 * before + path.measure() + 2 * bool(not held))

    slot = Slot(child)
    slot.fork()
    slot.work()
    assert slot.end() == (1, ord("w"))


def test_what_a_call_writes_to_is_copied_before_the_next_has_work() -> None:
    memory = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * len(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pages = native.Pages([(start, start + len(memory))])
    written = [start + 3 * mmap.PAGESIZE, start + 9 * mmap.PAGESIZE]

    writes = mmap.mmap(-1, mmap.PAGESIZE)
    writes[0] = 1

    def child(path: native.Native) -> None:
        path.receive()
        if writes[0]:
            memory[3 * mmap.PAGESIZE] = memory[9 * mmap.PAGESIZE] = 1
        path.answer(repr(path.measure()).encode())

    slot = Slot(child, pages=pages)
    for round in range(3):
        page.NUMBER.pack_into(slot.page, page.LEARN_AT, int(round < 2))
        slot.fork()
        slot.work()
        learned = slot.channel.recv(4096)[: -page.FIGURES_SIZE] == b"True"
        assert learned == (round < 2) and pages.own() == written
        if round < 2:
            os.waitpid(page.pid(slot.page), linux.WALL)
            page.learned(slot.page, pages.own())
        writes[0] = 0  # from now on they are copied all the same
    assert slot.end() == (0, ord("w"))


def test_nothing_to_do_ends_a_child_and_a_parent_that_is_gone_too() -> None:
    slot = Slot(lambda path: os._exit(5 + path.receive()))
    slot.fork()
    slot.channel.close()
    assert slot.end() == (0, ord("w"))
    slot = Slot(lambda path: os._exit(5), orphan=os.getpid() != 1)
    slot.fork()
    assert slot.end() == (1, ord("w"))

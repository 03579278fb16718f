"""The forker's loop in machine code: it waits for a byte on its socket, clones, and waits again.

A process that forks has all its pages write-protected, and copies each that it writes to afterwards.  The
interpreter writes to some sixty of them around one ``clone``; this loop writes to none.  Its source is
``forkloop.S``; a test assembles that and compares.  The code is written to a page that is then made executable and
is never both.  x86-64 only; where such a page is not allowed, monitors fork with ``os.fork``.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

from lfm.monitor import linux

FORK = b"f"  # what the loop takes for "clone"; anything else ends it
CODE = bytes.fromhex(
    "b82d000000"  # wait: recvfrom(
    "bf11111111"  # socket,
    "48be2222222222222222"  # byte, in the shared page
    "ba01000000" "4531d2" "4531c0" "4531c9" "0f05"  # 1, 0, NULL, NULL)
    "83f8fc" "74d7"  # EINTR: wait
    "83f801" "753a"  # its end, or an error: other
    "803e66" "7535"  # not 'f': other
    "b838000000"  # clone(
    "bf33333333"  # flags,
    "31f6"  # NULL,
    "48ba4444444444444444"  # pid, in the shared page,
    "49ba5555555555555555"  # tid,
    "4531c0" "0f05"  # 0)
    "85c0" "7fa4"  # in the parent: wait
    "48b86666666666666666" "740a"  # in the child: return child
    "48b87777777777777777"  # other: return other
    "c3"
)  # fmt: skip
_SOCKET, _BYTE, _FLAGS, _PID, _TID, _CHILD, _OTHER = 6, 12, 57, 65, 75, 94, 106  # where these stand
_METH_NOARGS = 4
_kept: list[Any] = []  # what the machine code uses must never move


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def possible() -> bool:
    """Whether this machine and this process may run it."""
    return linux.can_clone() and _executable(b"\xc3") is not None


def make(socket: int, page: mmap.mmap, byte_at: int, pid_at: int, flags: int) -> Callable[[], bool]:
    """``loop()``: for every ``FORK`` heard clone, have the child's number written to the page, and return False in
    the child; True in the parent on anything else, which then stands in the page at ``byte_at``."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    code = bytearray(CODE)
    for at, value, size in (
        (_SOCKET, socket, 4),
        (_BYTE, start + byte_at, 8),
        (_FLAGS, flags | linux.CLONE_PARENT_SETTID | linux.CLONE_CHILD_SETTID | linux.CLONE_CHILD_CLEARTID, 4),
        (_PID, start + pid_at, 8),
        (_TID, linux.tid_address(), 8),
        (_CHILD, id(False), 8),
        (_OTHER, id(True), 8),
    ):
        code[at : at + size] = value.to_bytes(size, "little")
    held = _executable(bytes(code))
    if held is None:
        raise OSError("no page can be made executable")
    method = _Method(b"loop", ctypes.addressof(held), _METH_NOARGS, None)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p), ctypes.py_object
    _kept.append((page, held, method))
    loop: Callable[[], bool] = new(ctypes.addressof(method), None, None)
    return loop


def give_references(times: int = 1 << 10) -> None:
    """The loop returns True and False without counting that: so they are counted beforehand."""
    count = ctypes.pythonapi.Py_IncRef
    count.argtypes, count.restype = (ctypes.py_object,), None
    for _ in range(times):
        count(False)
        count(True)


def _executable(code: bytes) -> ctypes.c_char | None:
    """The first byte of a page that holds this code; None where the system does not allow one."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[: len(code)] = code
    first = ctypes.c_char.from_buffer(page)  # holds on to the page
    return first if linux.make_executable(ctypes.addressof(first), mmap.PAGESIZE) else None

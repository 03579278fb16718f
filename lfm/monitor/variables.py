"""The environment variables that differ from call to call, kept where a call can change them in place.

``setenv`` allocates, and keeps a tree of all that it was ever given: some twenty pages to copy for one variable.  Here
the C library's strings lie in one block of ours, with room to grow; what does not fit is set in the usual way.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

NAMES = (
    "TMPDIR", "LFM_TASK", "LFM_ATTEMPT", "LFM_CORES", "LFM_MEMORY",
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
ROOM = 128  # bytes of one variable: name, equals sign, text, and the zero at its end
ENVIRON: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
_block = bytearray()
_places: dict[bytes, int] = {}  # where a variable's text begins


def forget_tmpdir() -> None:
    """What ``tempfile`` found before there was a call is no call's."""
    found: Any = sys.modules.get("tempfile")
    if found is not None and found.tempdir == os.environ.get("TMPDIR"):  # else somebody has chosen it
        found.tempdir = None


def keep(names: tuple[str, ...] = NAMES) -> None:
    """Move these variables, with the texts that they have, to a block of ours.  Again, if something may have set them
    in between."""
    global _block
    libc = ctypes.CDLL(None)
    libc.putenv.argtypes = (ctypes.c_void_p,)
    _places.clear()
    kept = [(name, ENVIRON[name]) for name in map(os.fsencode, names) if name in ENVIRON]
    block = bytearray(ROOM * len(kept))
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for at, (name, text) in zip(range(0, len(block), ROOM), kept, strict=True):
        if len(name) + len(text) + 2 > ROOM:
            continue
        block[at : at + len(name) + len(text) + 1] = name + b"=" + text
        libc.putenv(start + at)
        _places[name] = at + len(name) + 1
    _old.append(block)  # the C library points there, for ever
    _block = block


_old: list[bytearray] = []


def change(environ: tuple[bytes, ...]) -> None:
    """Names and texts in turn."""
    ours, at = ENVIRON, 0
    while at < len(environ):
        name, text = environ[at], environ[at + 1]
        if ours.get(name) != text:
            place = _places.get(name)
            if place is None or len(name) + len(text) + 2 > ROOM:
                os.putenv(name, text)
            else:
                text += b"\0"
                _block[place : place + len(text)] = text
                text = environ[at + 1]
            ours[name] = text
        at += 2

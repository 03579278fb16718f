# ruff: noqa: PTH103, PTH116, PTH120
"""Run by the interpreter that will import it (``-I -S``): bytecode for a list of source files.

Input: ``{"optimise": false, "files": [[source, kept, target, name], ...]}``: compile ``source`` (or take the
bytecode ``kept`` if it is that source's) and write it to ``target``; tracebacks will say ``name`` until the
module is imported.  The files are "unchecked hash" ones: valid whatever the times on the node say.
A source that this Python cannot compile is left without, as pip does.
"""

import _imp
import json
import marshal
import os
import sys
from importlib.util import MAGIC_NUMBER
from types import CodeType

KEY = int.from_bytes(MAGIC_NUMBER, "little")
UNCHECKED = (0b01).to_bytes(4, "little")


def kept_code(path: str, source: bytes, stat: os.stat_result) -> CodeType | None:
    """The code in ``path`` if it was compiled from exactly this source, else None."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    if data[:4] != MAGIC_NUMBER or len(data) < 20:
        return None
    flags = int.from_bytes(data[4:8], "little")
    if flags == 0:
        same = data[8:12] == (int(stat.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") and data[12:16] == (
            stat.st_size & 0xFFFFFFFF
        ).to_bytes(4, "little")
    else:
        same = data[8:16] == _imp.source_hash(KEY, source)
    try:
        return marshal.loads(memoryview(data)[16:]) if same else None
    except (EOFError, ValueError, TypeError):
        return None


def main() -> None:
    made = 0
    for path, kept, target, name in json.load(sys.stdin)["files"]:
        with open(path, "rb") as file:
            source = file.read()
        code = kept_code(kept, source, os.stat(path)) if kept else None
        if code is None:
            try:
                code = compile(source, name, "exec", dont_inherit=True, optimize=0)
            except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
                continue
        else:
            _imp._fix_co_filename(code, name)  # type: ignore[attr-defined]
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(MAGIC_NUMBER + UNCHECKED + _imp.source_hash(KEY, source) + marshal.dumps(code))
        made += 1
    print(json.dumps({"made": made}))


main()

"""The floor: what one isolated call costs at least.  ``os.fork``, a pipe, a pickle each way, ``wait4``, nothing else.

Standard library only: the bench runs this file with the very interpreter that lfm's calls run in, with the same
modules loaded, so that both fork the same process.  No limits, no measuring, no files, no scheduling.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import select
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any


class Fork:
    """Runs calls in forked children, ``slots`` at a time."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots

    def map(self, function: Any, values: Iterable[Any]) -> list[Any]:
        """As the built-in ``map``, each call in a child of its own."""
        queue = deque(enumerate(pickle.dumps((function, value), 5) for value in values))
        results: list[Any] = [None] * len(queue)
        running: dict[int, tuple[int, int, list[bytes]]] = {}
        poll = select.poll()
        while queue or running:
            while queue and len(running) < self.slots:
                index, message = queue.popleft()
                pid, pipe = self.start(message)
                running[pipe] = index, pid, []
                poll.register(pipe, select.POLLIN | select.POLLHUP)
            for pipe, _ in poll.poll():
                index, pid, pieces = running[pipe]
                if piece := os.read(pipe, 1 << 20):
                    pieces.append(piece)
                    continue
                poll.unregister(pipe)
                os.close(pipe)
                del running[pipe]
                if os.wait4(pid, 0)[1]:
                    raise ChildProcessError(f"call {index} failed")
                results[index] = pickle.loads(b"".join(pieces))
        return results

    @staticmethod
    def start(message: bytes) -> tuple[int, int]:
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                function, value = pickle.loads(message)
                data = pickle.dumps(function(value), 5)
                while data:
                    data = data[os.write(into, data) :]
                code = 0
            finally:
                os._exit(code)
        os.close(into)
        return pid, out


def load(modules: Iterable[str]) -> int:
    """Import those that can be imported; how many are loaded now."""
    for name in modules:
        if name.partition(".")[0] not in ("lfm", "work", "__main__"):
            try:
                importlib.import_module(name)
            except Exception:  # a module that only its own parent may import
                continue
    gc.collect()
    gc.freeze()
    gc.disable()
    return len(sys.modules)


def main() -> None:
    """``python floor.py [MODULE ...]``: the floor alone, with these modules loaded."""
    import work

    loaded, fork, calls = load(sys.argv[1:]), Fork(), 500
    begun, before = time.perf_counter(), sum(os.times()[:4])
    fork.map(work.noop, range(calls))
    cpu, wall = sum(os.times()[:4]) - before, time.perf_counter() - begun
    print(f"{loaded} modules: {cpu / calls * 1e3:.2f} ms CPU a call, {calls / wall:.0f} calls/s")


if __name__ == "__main__":
    main()

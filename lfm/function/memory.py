"""What is installed, presumed to be what it was when last looked at: so that a session's first function is quick.

To know that no file of an environment was edited, thousands must be looked at.  A session presumes so, says it at
once, and has looked (``Memory.look``) before anything leaves.  What was never looked at is looked at on the spot;
and without a memory that is all that is done.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lfm.function import cache, interpreter
from lfm.function.installed import Installation, Installed
from lfm.function.plan import Interpreter

MANY = 5000  # distributions; the oldest are forgotten first
Stamp = list[Any]  # what changes when it is installed anew


class Looking:
    """Looks at once."""

    def python(self) -> Interpreter:
        return interpreter.this()

    def fingerprint(self, one: Installation) -> str:
        return one.fingerprint

    def whole(self, installed: Installed) -> dict[str, int]:
        return installed.whole

    generation = 0  # how often a look has found something that was not as presumed

    @property
    def unsure(self) -> bool:
        return False

    def look(self) -> None:
        pass


class Memory(Looking):
    """Remembers, for this session and later ones.  ``look`` may be called from other threads."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache.cache_root() / "installed.json"
        self._pythons: dict[str, Any] = {}  # prefix -> [stamp, what it is]
        self._prints: dict[str, Any] = {}  # metadata -> [stamp, fingerprint]
        self._wholes: dict[str, Any] = {}  # folders -> [stamp, how much]
        self._read = self._news = False
        self._presumed: dict[Installation, str] = {}
        self._presumed_python: Interpreter | None = None
        self._looked_at_python = False
        self._one_looks = threading.Lock()

    # ------------------------------------------------------------ what is presumed

    def python(self) -> Interpreter:
        if not self._looked_at_python:
            found = self._remembered(self._pythons, sys.prefix, interpreter.stamp())
            with contextlib.suppress(TypeError):  # it is not there, or was written by another version
                presumed = Interpreter(**found)
                self._presumed_python = presumed
                return presumed
            self._looked_at_python = True
            self._keep(self._pythons, sys.prefix, interpreter.stamp(), asdict(interpreter.this()))
        return interpreter.this()

    def fingerprint(self, one: Installation) -> str:
        if one.looked_at or (stamp := _stamp(one)) is None:
            return one.fingerprint
        found = self._remembered(self._prints, one.metadata, stamp)
        if found is not None:
            self._presumed[one] = str(found)
            return str(found)
        self._keep(self._prints, one.metadata, stamp, one.fingerprint)
        return one.fingerprint

    def whole(self, installed: Installed) -> dict[str, int]:
        folders, stamp = "\n".join(installed.stamps), list(installed.stamps.values())
        found = self._remembered(self._wholes, folders, stamp)
        if isinstance(found, dict):
            return found
        self._keep(self._wholes, folders, stamp, installed.whole)
        return installed.whole

    # ------------------------------------------------------------ looking

    @property
    def unsure(self) -> bool:
        """Whether anything is presumed that was not looked at since, or is new and not written down."""
        return bool(self._presumed) or self._presumed_python is not None or self._news

    def look(self) -> None:
        """Look at all that is presumed; who comes while another looks waits for it.

        A presumption is taken back only once ``generation`` tells whether it was wrong: whoever then finds nothing
        unsure, and the generation to be that of before he presumed, has presumed nothing wrongly.
        """
        with self._one_looks:
            while presumed := list(self._presumed.items()):
                for one, fingerprint in presumed:
                    if one.fingerprint != fingerprint:
                        self._keep(self._prints, one.metadata, _stamp(one), one.fingerprint)
                        self.generation += 1
                    del self._presumed[one]  # only now: from here on it is known
            if (presumed_python := self._presumed_python) is not None:
                this = interpreter.this()
                if this != presumed_python:
                    self._keep(self._pythons, sys.prefix, interpreter.stamp(), asdict(this))
                    self.generation += 1
                self._looked_at_python, self._presumed_python = True, None
            if self._news:
                self._news = False
                self._write()

    # ------------------------------------------------------------ the file

    def _remembered(self, known: dict[str, Any], key: str, stamp: Stamp) -> Any:
        if not self._read:
            self._read, written = True, cache.read(self._path)
            for kind, held in self._kinds().items():
                found = written.get(kind)
                held.update(found if isinstance(found, dict) else {})
        match known.get(key):
            case [was, said] if was == stamp:
                return said
            case _:
                return None

    def _keep(self, known: dict[str, Any], key: str, stamp: Stamp | None, said: Any) -> None:
        known.pop(key, None)
        known[key] = [stamp, said]
        self._news = True

    def _kinds(self) -> dict[str, dict[str, Any]]:
        return {"pythons": self._pythons, "distributions": self._prints, "wholes": self._wholes}

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            cache.write(self._path, {kind: dict(list(held.items())[-MANY:]) for kind, held in self._kinds().items()})


def _stamp(one: Installation) -> Stamp | None:
    """Of what its installer wrote last; None if nothing tells."""
    try:
        state = os.stat(one.metadata if one.kind == "conda" else os.path.join(one.metadata, "RECORD"))
    except OSError:
        return None
    return [state.st_mtime_ns, state.st_size, state.st_ino]

"""What calls were found to import that no code shows: kept by function, so that a later session knows it.

One small JSON file in the user's cache, private, replaced as a whole; whoever writes reads it again first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lfm.function import cache

MANY = 2000  # functions; the oldest are forgotten first


class Learned:
    """Function -> modules that it turned out to need -> why.  A file that cannot be read or written is no file."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = cache.cache_root() / "learned.json" if path is None else path
        self.revision = 0  # counts what was learned since
        self._known: dict[str, dict[str, str]] | None = None

    def of(self, function: str) -> tuple[tuple[str, str], ...]:
        """(module, why) of what is known about ``function``: its qualified name and file."""
        if self._known is None:
            self._known = self._read()
        return tuple(sorted(self._known.get(function, {}).items()))

    def add(self, function: str, module: str, why: str) -> None:
        """Remember, now and for later sessions."""
        self.of(function)
        self.revision += 1
        with contextlib.suppress(OSError), self._alone():
            known = self._read()
            modules = {**known.pop(function, {}), module: why}
            known = {**dict(list(known.items())[-MANY + 1 :]), function: modules}
            cache.write(self.path, known)
            self._known = known
            return
        assert self._known is not None  # the disk did not take it: this session knows it all the same
        self._known.setdefault(function, {})[module] = why

    def _read(self) -> dict[str, dict[str, str]]:
        with contextlib.suppress(AttributeError):
            return {str(f): {str(m): str(why) for m, why in ms.items()} for f, ms in cache.read(self.path).items()}
        return {}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "a", opener=lambda p, f: os.open(p, f, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

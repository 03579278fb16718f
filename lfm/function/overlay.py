"""The user's own modules as one small tar: they travel as files, so that names, tracebacks and ``getsource`` are right.

``src/`` goes in front of the call's ``sys.path`` and holds the modules as they are imported, whatever folder they
come from; a regular package comes whole, with its data.  ``lib/`` goes at its end and holds cloudpickle, and what
``import lfm`` finds in a call.  The same content gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lfm.function import inside
from lfm.function.installed import Installation
from lfm.function.modules import Kind, Module, Modules

LARGE = 32 << 20  # bytes of one data file; what is beyond this stays here, with a warning
TOTAL = 128 << 20  # bytes of all
_DEAR = 0.001  # seconds of looking at all files from which on it is done less often
_SKIPPED = frozenset({"__pycache__", "node_modules"})
_TOLD = ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt")  # of an editable install
_Stamp = tuple[str, int, int]


@dataclass(slots=True)
class Overlay:
    """``stamps``: (path, size, mtime_ns) of the files and folders it was made from.

    ``homes``: where its own Python files lie here, by their path in it.
    """

    data: bytes
    homes: dict[str, str]
    stamps: tuple[_Stamp, ...]
    warnings: tuple[str, ...]
    quiet_until: float = 0.0

    def stale(self) -> bool:
        """Whether it would come out differently now.  Looking at a large tree takes 5 % of the time at most."""
        began = time.monotonic()
        if began < self.quiet_until:
            return False
        changed = any(_stamp(stamp[0]) != stamp for stamp in self.stamps)
        ended = time.monotonic()
        if ended - began > _DEAR:
            self.quiet_until = ended + 20 * (ended - began)
        return changed


def build(modules: Modules, local: Iterable[Module], editables: Iterable[Installation] = ()) -> Overlay:
    """The overlay for the user's modules ``local``."""
    files: dict[str, str] = {}  # path in the tar -> path here
    folders: set[str] = set()
    done: set[str] = set()
    for module in local:
        package = _package(modules, module)
        if package is None:
            files[f"src/{_lone(module)}"] = module.file
        elif package.name not in done:
            done.add(package.name)
            base = f"src/{package.name.replace('.', '/')}"
            files |= {f"{base}/{below}": path for below, path in _tree(package, folders)}
    for editable in editables:
        for name in _TOLD:
            path = os.path.join(editable.metadata, name)
            if os.path.isfile(path):
                files[f"src/{os.path.basename(editable.metadata)}/{name}"] = path
    stamps = tuple(
        _stamp(p) for p in (*sorted(files.values()), *sorted(folders))
    )  # before reading: never too new
    warnings: list[str] = []
    contents = dict(_read(files, warnings))
    homes = {name: path for name, path in files.items() if path.endswith(".py")}
    return Overlay(_tar({**contents, **_library()}), homes, stamps, tuple(warnings))


def _read(files: dict[str, str], warnings: list[str]) -> Iterator[tuple[str, bytes]]:
    """(path in the tar, content), code first; what is too large or cannot be read is warned of instead."""
    total = 0
    for name, path in sorted(files.items(), key=lambda pair: (not pair[0].endswith(".py"), pair)):
        try:
            size = os.path.getsize(path)
            if size > LARGE or total + size > TOTAL:
                warnings.append(
                    f"{path} does not travel with its package: it is too large ({size >> 20} MiB)"
                )
                continue
            total += size
            yield name, Path(path).read_bytes()
        except OSError as error:
            warnings.append(f"{path} does not travel with its package: {error.strerror}")


def _package(modules: Modules, module: Module) -> Module | None:
    """The outermost regular package that holds ``module`` (which may be it); None for a lone file."""
    found, name = None, module.name
    while name:
        one = modules.find(name)
        if one.kind is Kind.LOCAL and one.places is not None:
            found = one
        name = name.rpartition(".")[0]
    return found


def _lone(module: Module) -> str:
    """Where a lone module lies below ``src/``; an extension keeps the tag in its name."""
    parent, _, last = module.name.rpartition(".")
    name = os.path.basename(module.file)
    name = (
        name if name.partition(".")[0] == last else f"{last}.py"
    )  # loaded by hand from a file named otherwise
    return f"{parent.replace('.', '/')}/{name}" if parent else name


def _tree(package: Module, folders: set[str]) -> Iterator[tuple[str, str]]:
    """(path below the package, path here) of its files; its folders go into ``folders``."""
    for top in package.places or ():
        for folder, below, names in os.walk(top):
            below[:] = sorted(b for b in below if b not in _SKIPPED and not b.startswith("."))
            folders.add(folder)
            for name in sorted(names):
                path = os.path.join(folder, name)
                if not name.endswith((".pyc", ".pyo")) and not name.startswith(".") and os.path.isfile(path):
                    yield os.path.relpath(path, top).replace(os.sep, "/"), path


def _stamp(path: str) -> _Stamp:
    try:
        state = os.stat(path)
    except OSError:
        return path, -1, 0
    return path, state.st_size, state.st_mtime_ns


@cache
def _library() -> dict[str, bytes]:
    import cloudpickle

    folder = Path(cloudpickle.__file__).parent
    contents = {f"lib/cloudpickle/{file.name}": file.read_bytes() for file in folder.glob("*.py")}
    contents[f"lib/cloudpickle-{cloudpickle.__version__}"] = (
        b""  # a call may have this version loaded already
    )
    return {**contents, **{f"lib/{name}": data for name, data in inside.files().items()}}


def _tar(contents: dict[str, bytes]) -> bytes:
    """Same names and contents, same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(contents):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(contents[name]), 0o644
            tar.addfile(member, io.BytesIO(contents[name]))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)  # so it mostly fits into a message

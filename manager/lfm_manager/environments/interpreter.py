# ruff: noqa: PTH118
# Thousands of files: plain strings cost a tenth of Path objects.
"""The client's CPython as a package: binary, libpython, standard library and the libraries these need.

Nothing in it names the place it came from: the loader finds libraries by ``$ORIGIN``, Python finds its
standard library beside its binary.  Parts that no call on a node needs are left behind (``places.TRIMMED``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lfm.function.plan import Interpreter
from lfm_manager.environments import bytecode, elf
from lfm_manager.environments.packages import Draft, Package, Packages
from lfm_manager.environments.places import TRIMMED, locked
from lfm_manager.environments.problems import BuildFailed

_DESCRIBE = Path(__file__).parent / "inside" / "describe.py"

_TRIMMED_FILES = frozenset({"turtle.py", "sitecustomize.py", "EXTERNALLY-MANAGED"})
_TRIMMED_EXTENSIONS = re.compile(r"^(_tkinter|_test\w*|_xxtestfuzz|xxlimited\w*|_ctypes_test)\.")


@dataclass(frozen=True, slots=True)
class Described:
    """What an interpreter says of itself."""

    executable: str
    version: str
    implementation: str
    base_prefix: str
    stdlib: str
    platstdlib: str
    include: str
    libdir: str
    soabi: str
    machine: str
    libc: str
    platlibdir: str
    cache_tag: str
    abiflags: str

    @property
    def minor(self) -> str:
        """``3.11``."""
        return ".".join(self.version.split(".")[:2])

    @property
    def library(self) -> str:
        """The standard library's place in a prefix."""
        return f"lib/python{self.minor}{self.abiflags if 't' in self.abiflags else ''}"

    @property
    def site_packages(self) -> str:
        return f"{self.library}/site-packages"


def describe(executable: str) -> Described:
    """Ask the interpreter; it loads nothing but its own standard library."""
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-B", _DESCRIBE], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(
            f"the Python of this environment cannot be run: {executable}: {error}",
            hint="is it on this machine?  The client can build and upload it instead",
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BuildFailed(f"the Python of this environment does not work: {executable}: {last}")
    described = Described(**json.loads(done.stdout))
    if described.implementation != "cpython":
        raise BuildFailed(f"{executable} is {described.implementation}; only CPython can be packed")
    if not described.libc.startswith("glibc"):
        raise BuildFailed(
            f"{executable} does not use glibc", hint="environments are made on Linux with glibc"
        )
    return described


def package(packages: Packages, interpreter: Interpreter, described: Described) -> Package:
    """The interpreter's package, made on first use and kept."""
    build = f"lfm_{interpreter.fingerprint[:16]}"
    if found := packages.find("python", described.version, build):
        return found
    with locked(packages.lock_path(f"python-{described.version}-{build}")):
        if found := packages.find("python", described.version, build):
            return found
        with packages.make("python", described.version, build) as draft:
            _fill(draft, described)
            return draft.finish()


def _fill(draft: Draft, it: Described) -> None:
    binary = draft.copy(Path(it.executable), f"bin/python{it.minor}")
    for name in ("python", "python3"):
        draft.link(f"bin/{name}", f"python{it.minor}")
    if it.platlibdir != "lib":  # Fedora's "lib64": Python looks for its library there
        draft.link(it.platlibdir, "lib")
    modules, extensions = _copy_library(draft, it)
    _copy_headers(draft, it)
    _make_movable(draft, it, {Path(it.executable): binary} | extensions)
    bytecode.compile_all(Path(it.executable), modules)


def _make_movable(draft: Draft, it: Described, binaries: dict[Path, Path]) -> None:
    """Bring the libraries that the binaries (original: copy) need, and have them found wherever they go."""
    needs = elf.needed(list(binaries))
    for name, user in needs.lost.items():
        if user == it.executable:
            raise BuildFailed(
                f"{user} needs {name}, which is not found",
                hint="load the module that brings it (LD_LIBRARY_PATH) before you start the manager",
            )
    libraries = [draft.copy(path, f"lib/{name}") for name, path in sorted(needs.found.items())]
    for path in (*binaries.values(), *libraries):
        path.chmod(0o755)
    elf.strip([*binaries.values(), *libraries])
    elf.set_run_path(libraries, "$ORIGIN")
    by_folder: dict[Path, list[Path]] = {}
    for original, copy in binaries.items():
        if str(original) in needs.users:
            by_folder.setdefault(copy.parent, []).append(copy)
    for folder, copies in by_folder.items():
        elf.set_run_path(copies, f"$ORIGIN/{os.path.relpath(draft.path / 'lib', folder)}")


def _copy_library(draft: Draft, it: Described) -> tuple[list[bytecode.Module], dict[Path, Path]]:
    """The standard library; what is to be compiled, and the extension modules (original: copy)."""
    modules: list[bytecode.Module] = []
    extensions: dict[Path, Path] = {}
    seen: set[str] = set()
    for folder in dict.fromkeys((it.stdlib, it.platstdlib)):
        for source, inside in _library_files(Path(folder)):
            target = f"{it.library}/{inside}"
            if target in seen:
                continue
            seen.add(target)
            path = draft.copy(source, target)
            if inside.endswith(".py"):
                if source.name.startswith("_sysconfigdata") and len(it.base_prefix) > len("/usr/local"):
                    draft.placeholder(target, it.base_prefix)  # its bytecode would go stale
                else:
                    modules.append(bytecode.planned(draft, source, target, it.cache_tag))
            elif ".so" in source.name and elf.is_elf(path):
                extensions[source] = path
    if not modules:
        raise BuildFailed(f"no standard library in {it.stdlib}", hint="is this Python installed whole?")
    draft.write(f"{it.site_packages}/README.txt", b"Packages of this environment.\n")
    if b"dist-packages" in (Path(it.stdlib) / "site.py").read_bytes():
        # Debian's Python looks here, and only here, unless it runs in a virtual environment.
        draft.link("lib/python3/dist-packages", f"../{it.library.removeprefix('lib/')}/site-packages")
    return modules, extensions


def _copy_headers(draft: Draft, it: Described) -> None:
    """Python's own, if they are here: there are packages that compile what they are about to run."""
    root = Path(it.include)
    for file in sorted(file for file in root.rglob("*") if file.is_file()):
        draft.copy(file, f"include/{root.name}/{file.relative_to(root)}")


def _library_files(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        top = inside == "."
        folders[:] = sorted(
            name
            for name in folders
            if name != "__pycache__" and not (top and (name in TRIMMED or name.startswith("config-")))
        )
        for name in sorted(files):
            path = Path(folder, name)
            if (
                (top and name in _TRIMMED_FILES)
                or _TRIMMED_EXTENSIONS.match(name)
                or name.endswith((".pyc", ".a"))
            ):
                continue
            if path.is_file():  # not a link that leads nowhere
                yield path, os.path.normpath(os.path.join(inside, name))

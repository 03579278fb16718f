"""Where a module lies, and whose it is: the standard library's, an installed distribution's, the user's own.

Finds as ``import`` would (the same finders, editable installs' hooks included), but imports nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from enum import Enum

from lfm.function.installed import Installation, Installed


class Kind(Enum):
    STANDARD = "standard"
    INSTALLED = "installed"
    LOCAL = "local"
    NAMESPACE = "namespace"  # a folder without code of its own
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    kind: Kind
    file: str = ""
    places: tuple[str, ...] | None = None  # where its submodules lie; None if it is no package
    owner: Installation | None = None


class Modules:
    """Finds modules by name and remembers what it found."""

    def __init__(self, installed: Installed) -> None:
        self.installed = installed
        self.known: dict[str, Module] = {}
        paths = sysconfig.get_paths()
        self.standard = tuple({os.path.realpath(paths[k]) + os.sep for k in ("stdlib", "platstdlib")})

    def find(self, name: str) -> Module:
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = self._find(name)
        return found

    def _find(self, name: str) -> Module:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names and self._is_standard(top):
            return Module(name, Kind.STANDARD)
        spec = self._spec(name)
        if spec is None:
            return Module(name, Kind.MISSING)
        if spec.origin in ("built-in", "frozen"):
            return Module(name, Kind.STANDARD)
        places = spec.submodule_search_locations
        packages = None if places is None else tuple(os.path.abspath(p) for p in places)
        if not spec.has_location or not spec.origin:
            return Module(name, Kind.NAMESPACE, places=packages)
        file = os.path.abspath(spec.origin)
        owner = self.installed.owner(file)
        if owner is None and self.installed.site_of(file) is None and self._beside_library(file):
            return Module(name, Kind.STANDARD)
        return Module(name, Kind.INSTALLED if owner else Kind.LOCAL, file, packages, owner)

    def _is_standard(self, top: str) -> bool:
        """Not if a module of the user's shadows one of the standard library."""
        file = getattr(sys.modules.get(top), "__file__", None)
        return not file or self._beside_library(os.path.abspath(file))

    def _beside_library(self, file: str) -> bool:
        real = os.path.realpath(file)
        return real.startswith(self.standard) and "-packages" + os.sep not in real

    def _spec(self, name: str) -> importlib.machinery.ModuleSpec | None:
        loaded = sys.modules.get(name)
        spec: importlib.machinery.ModuleSpec | None = getattr(loaded, "__spec__", None)
        if spec is not None and spec.name == name:
            return spec
        path: list[str] | None = None
        if parent := name.rpartition(".")[0]:
            places = self.find(parent).places
            if places is None:
                return None
            path = list(places)
        for finder in sys.meta_path:
            look = getattr(finder, "find_spec", None)
            try:
                found = look(name, path, None) if look else None
            except Exception:  # a finder's bug must not become the function's
                found = None
            if isinstance(found, importlib.machinery.ModuleSpec):
                return found
        file = getattr(loaded, "__file__", None)  # put into sys.modules by hand
        return importlib.util.spec_from_file_location(name, file) if file else None

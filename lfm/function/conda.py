"""What conda, mamba or pixi installed into this prefix: one record per package in ``conda-meta``.

Records are large and many, so ownership is asked of their text, likely ones first, and only those of packages
that are taken along are parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from typing import Any

from lfm.function.installed import Installation


class CondaRecord(Installation):
    """One conda package in a prefix.  ``metadata`` is its record, ``location`` the prefix."""

    kind = "conda"

    def __init__(self, metadata: str) -> None:
        self.metadata = metadata
        self.location = os.path.dirname(os.path.dirname(metadata))
        self.suffix = ""
        stem = os.path.basename(metadata).removesuffix(".json")
        self.name, self.version, self.build = stem.rsplit("-", 2)  # conda's own names have no "_" for "-"

    @cached_property
    def record(self) -> bytes:
        with open(self.metadata, "rb") as file:
            return file.read()

    def owns(self, relative: str) -> bool:
        return json.dumps(relative).encode() in self.record

    def owns_below(self, folder: str) -> bool:
        return json.dumps(folder).encode()[:-1] + b"/" in self.record

    @cached_property
    def said(self) -> dict[str, Any]:
        found = json.loads(self.record)
        return found if isinstance(found, dict) else {}

    @cached_property
    def requires(self) -> tuple[str, ...]:
        """The names of the packages that it depends on; virtual ones, of the machine, are left out."""
        names = (str(spec).split()[0] for spec in self.said.get("depends", ()))
        return tuple(name for name in names if not name.startswith("__"))

    @cached_property
    def groups(self) -> frozenset[str]:
        return frozenset()  # its dist-info says

    @cached_property
    def editable(self) -> str | None:
        return None

    @property
    def size(self) -> int:
        paths = self.said.get("paths_data", {}).get("paths", ())
        return sum(int(path.get("size_in_bytes") or 0) for path in paths)

    @cached_property
    def fingerprint(self) -> str:
        """sha-256 over what names the package's content: it is taken from the package cache as it was installed."""
        content = self.said.get("sha256") or self.said.get("md5") or self.said.get("url", "")
        return hashlib.sha256(f"{self.name}\0{self.version}\0{self.build}\0{content}".encode()).hexdigest()


class CondaPrefix:
    """The records of one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.folder = os.path.join(prefix, "conda-meta")
        names = sorted(
            name for name in os.listdir(self.folder) if name.endswith(".json") and name.count("-") >= 2
        )
        self.records = {one.name: one for one in (CondaRecord(os.path.join(self.folder, n)) for n in names)}
        self._owners: dict[str, CondaRecord | None] = {}

    @classmethod
    def of(cls, prefix: str) -> CondaPrefix | None:
        """None if conda did not make this prefix."""
        return cls(prefix) if os.path.isdir(os.path.join(prefix, "conda-meta")) else None

    def owner(self, file: str, hint: str = "") -> CondaRecord | None:
        """Who installed ``file`` (absolute); ``hint`` is a likely name."""
        if file not in self._owners:
            self._owners[file] = self._owner(file, hint)
        return self._owners[file]

    def _owner(self, file: str, hint: str) -> CondaRecord | None:
        if not file.startswith(self.prefix + os.sep):
            return None
        relative = os.path.relpath(file, self.prefix).replace(os.sep, "/")
        likely = sorted(self.records.values(), key=lambda one: one.name not in (hint, hint.replace("_", "-")))
        return next((one for one in likely if one.owns(relative)), None)

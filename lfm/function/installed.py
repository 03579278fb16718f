"""What is installed where this interpreter looks: which distribution owns a file, what it requires, whether it changed.

Reads ``*.dist-info`` and ``*.egg-info`` beside the packages, and imports nothing of theirs.  Ownership is the
longest path that a RECORD lists, so namespace packages are told apart and names that differ from their
distribution come out right.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from functools import cached_property

# Written by installers about the installing, not part of what is installed.
_NOTES = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "uv_build.json"})
_SIZES = re.compile(rb",(\d+)\r?$", re.MULTILINE)


def normalise(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Installation:
    """One distribution as its metadata describes it.  ``location`` is where its paths start from."""

    kind = "python"

    def __init__(self, metadata: str) -> None:
        self.metadata = metadata
        self.location, folder = os.path.split(metadata)
        stem, _, self.suffix = folder.rpartition(".")
        name, _, version = stem.partition("-")
        if self.suffix == "egg-info":
            name, version = self._named() or (name, version.partition("-py")[0])
        self.name, self.version = normalise(name), version or "0"

    def __repr__(self) -> str:
        return f"<{self.name} {self.version} in {self.location}>"

    def read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self.metadata, name), "rb") as file:
                return file.read()
        except OSError:
            return None

    def _named(self) -> tuple[str, str] | None:
        said = dict(re.findall(rb"^(Name|Version):\s*(\S+)", self.header, re.MULTILINE))
        return (said[b"Name"].decode(), said.get(b"Version", b"0").decode()) if b"Name" in said else None

    # ------------------------------------------------------------ what it owns

    @cached_property
    def record(self) -> bytes:
        """Its RECORD after a line feed; for want of it what older installers left; b"" if nothing tells."""
        if text := self.read("RECORD"):
            return b"\n" + text
        if text := self.read("installed-files.txt"):  # paths relative to the metadata folder
            base = os.path.basename(self.metadata)
            paths = (os.path.normpath(os.path.join(base, line)) for line in text.decode().split("\n") if line)
            return b"\n" + "".join(f"{path},,\n" for path in paths).encode()
        return b""

    @cached_property
    def tops(self) -> tuple[str, ...]:
        """The top names that its metadata lists; for want of it, its own."""
        text = (self.read("top_level.txt") or b"").decode().split()
        return tuple(text) or (self.name.replace("-", "_"),)

    def owns(self, relative: str) -> bool:
        if not self.record:
            return relative.partition("/")[0].partition(".")[0] in self.tops
        path = f'"{relative}"' if "," in relative else relative
        return f"\n{path},".encode() in self.record

    def owns_below(self, folder: str) -> bool:
        return f"\n{folder}/".encode() in self.record

    def files(self) -> Iterator[tuple[str, str, int | None]]:
        """(path, "sha256=..." or "", size) of each line of its RECORD."""
        for line in self.record.decode("utf-8", "surrogateescape").split("\n"):
            if line := line.rstrip("\r"):
                path, _, rest = line[1:].partition('",') if line[0] == '"' else line.partition(",")
                digest, _, size = rest.partition(",")
                yield path, digest, int(size) if size.isdigit() else None

    @property
    def size(self) -> int:
        """Bytes, as RECORD says."""
        return sum(map(int, _SIZES.findall(self.record)))

    # ------------------------------------------------------------ what it says of itself

    @cached_property
    def header(self) -> bytes:
        text = self.read("METADATA") or self.read("PKG-INFO") or b""
        if not text and os.path.isfile(self.metadata):  # an egg-info that is a file
            with open(self.metadata, "rb") as file:
                text = file.read()
        return text.replace(b"\r\n", b"\n").partition(b"\n\n")[0]

    @cached_property
    def requires(self) -> tuple[str, ...]:
        """Its requirements as written, with their markers."""
        found = re.findall(rb"^Requires-Dist:\s*(.+)$", self.header, re.MULTILINE)
        if not found and self.suffix == "egg-info" and self.read("requires.txt"):
            from importlib.metadata import Distribution

            return tuple(Distribution.at(self.metadata).requires or ())
        return tuple(line.decode().strip() for line in found)

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups of its entry points."""
        text = self.read("entry_points.txt") or b""
        return frozenset(g.decode().strip() for g in re.findall(rb"^\[(.+)\]", text, re.MULTILINE))

    @cached_property
    def editable(self) -> str | None:
        """The folder an editable install points to; None for a plain one."""
        text = self.read("direct_url.json")
        if not text:
            return None
        import json
        from urllib.parse import unquote, urlsplit

        said = json.loads(text)
        if said.get("dir_info", {}).get("editable") and str(said.get("url", "")).startswith("file:"):
            return os.path.realpath(unquote(urlsplit(said["url"]).path))
        return None

    # ------------------------------------------------------------ whether it changed

    @cached_property
    def fingerprint(self) -> str:
        """sha-256 over the paths and contents of its files as they are now.

        RECORD's hashes are believed for files of the recorded size that are not newer than RECORD itself;
        others are read.  Byte code, installers' notes and generated scripts are left out.
        """
        lines = sorted(self._contents())
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def looked_at(self) -> bool:
        return "fingerprint" in self.__dict__

    def _contents(self) -> Iterator[str]:
        try:
            recorded = os.stat(os.path.join(self.metadata, "RECORD")).st_mtime_ns
        except OSError:
            recorded = 0
        notes = os.path.basename(self.metadata)
        scripts = self._scripts()
        for path, digest, size in self.files() if self.record else self._walk():
            folder, _, name = path.rpartition("/")
            if path.endswith(".pyc") or (folder == notes and name in _NOTES):
                continue
            if path.startswith("..") and name in scripts:
                continue  # generated from entry_points.txt, with this machine's path in it
            yield f"{path}\0{self._digest(path, digest, size, recorded)}"

    def _digest(self, path: str, digest: str, size: int | None, recorded: int) -> str:
        try:
            file = os.path.join(self.location, path)
            state = os.stat(file)
            if (
                digest
                and size == state.st_size
                and state.st_mtime_ns <= recorded
                and not path.startswith("..")
            ):
                return digest
            with open(file, "rb") as handle:
                data = handle.read()
        except OSError as error:
            return type(error).__name__
        if path.startswith("..") and data.startswith(b"#!"):
            data = data.partition(b"\n")[2]  # the interpreter's path differs from place to place
        return "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

    def _walk(self) -> Iterator[tuple[str, str, None]]:
        """The files of a distribution that has no RECORD: its metadata and the packages it names."""
        for root in (os.path.basename(self.metadata), *self.tops):
            for file in (root, root + ".py"):
                if os.path.isfile(os.path.join(self.location, file)):
                    yield file, "", None
            for folder, folders, files in os.walk(os.path.join(self.location, root)):
                folders[:] = [f for f in folders if f != "__pycache__"]
                for name in files:
                    yield os.path.relpath(os.path.join(folder, name), self.location), "", None

    def _scripts(self) -> frozenset[str]:
        text = (self.read("entry_points.txt") or b"").decode("utf-8", "replace")
        return frozenset(re.findall(r"^\s*([^\s=\[#][^=]*?)\s*=", text, re.MULTILINE))


class LoneFile(Installation):
    """A module that lies among installed ones and belongs to none: its own distribution, of one file."""

    def __init__(self, file: str) -> None:
        self.metadata = file
        self.location, base = os.path.split(file)
        self.suffix = ""
        self.name, self.version = base.partition(".")[0], "0"

    @cached_property
    def record(self) -> bytes:
        return b"\n" + os.path.basename(self.metadata).encode() + b",,\n"

    @cached_property
    def header(self) -> bytes:
        return b""


class Installed:
    """All distributions on this interpreter's path, as they were when this was made."""

    def __init__(self, path: list[str] | None = None, prefix: str | None = None) -> None:
        from lfm.function.conda import CondaPrefix

        self.path = list(sys.path if path is None else path)
        self.conda = CondaPrefix.of(sys.prefix if prefix is None else prefix)
        self.sites: dict[str, list[Installation]] = {}
        self.stamps: dict[str, int] = {}
        self._owners: dict[str, Installation | None] = {}
        for entry in self.path:
            folder = os.path.abspath(entry or ".")
            if folder not in self.sites and os.path.isdir(folder):
                self._look(folder)
        if self.conda is not None:
            self.stamps[self.conda.folder] = os.stat(self.conda.folder).st_mtime_ns

    def _look(self, folder: str) -> None:
        with os.scandir(folder) as entries:
            metadata = sorted(e.path for e in entries if e.name.endswith((".dist-info", ".egg-info")))
        site = os.path.basename(folder).endswith("-packages")
        if not site:  # there an *.egg-info is a source tree's own, and installs nothing
            metadata = [m for m in metadata if m.endswith(".dist-info")]
        if metadata or site:
            self.sites[folder] = [Installation(m) for m in metadata]
            self.stamps[folder] = os.stat(folder).st_mtime_ns

    def stale(self) -> bool:
        """Whether something was installed or removed since."""
        try:
            return any(os.stat(folder).st_mtime_ns != stamp for folder, stamp in self.stamps.items())
        except OSError:
            return True

    @cached_property
    def by_name(self) -> dict[str, Installation]:
        found: dict[str, Installation] = {}
        for site in self.sites.values():
            for one in site:
                found.setdefault(one.name, one)  # the first on the path is the one that is imported
        return found

    def named(self, name: str) -> Installation | None:
        return self.by_name.get(normalise(name))

    def site_of(self, file: str) -> str | None:
        """The folder with installed distributions that ``file`` lies under."""
        inside = [folder for folder in self.sites if file.startswith(folder + os.sep)]
        return max(inside, key=len, default=None)

    def owner(self, file: str) -> Installation | None:
        """Who installed ``file`` (absolute); None for a file of the user's own."""
        if file not in self._owners:
            self._owners[file] = self._owner(file)
        return self._owners[file]

    def _owner(self, file: str) -> Installation | None:
        found = self._by_metadata(file)
        if self.conda is None or (found is not None and found.editable):
            return found
        return (self.promoted(found) if found else None) or self.conda.owner(file) or found

    def promoted(self, one: Installation) -> Installation | None:
        """The conda package that brought a distribution; None if none did."""
        if self.conda is None or isinstance(one, LoneFile):
            return None
        told = (os.path.join(one.metadata, name) for name in ("METADATA", "PKG-INFO"))
        return next((owner for file in told if (owner := self.conda.owner(file, one.name))), None)

    def _by_metadata(self, file: str) -> Installation | None:
        site = self.site_of(file)
        if site is None:
            return None
        relative = os.path.relpath(file, site).replace(os.sep, "/")
        top = relative.partition("/")[0].partition(".")[0].lower()
        likely = sorted(self.sites[site], key=lambda one: one.name.replace("-", "_") != top)
        for one in likely:
            if one.owns(relative):
                return one
        folder = relative
        while "/" in folder:  # a file that an installed package got later belongs to who owns its folder
            folder = folder.rpartition("/")[0]
            for one in likely:
                if one.owns_below(folder):
                    return one
        return LoneFile(file) if "/" not in relative else None

    def editable_owner(self, file: str) -> Installation | None:
        """The editable install whose folder holds ``file``."""
        real = os.path.realpath(file)
        inside = [one for one in self.editables if real.startswith(str(one.editable) + os.sep)]
        return max(inside, key=lambda one: len(str(one.editable)), default=None)

    @cached_property
    def editables(self) -> tuple[Installation, ...]:
        return tuple(one for one in self.by_name.values() if one.editable)

    def providing(self, group: str) -> list[Installation]:
        """The distributions with entry points of ``group``."""
        return [one for one in self.by_name.values() if group in one.groups]

    @cached_property
    def whole(self) -> dict[str, int]:
        """How many distributions and bytes there are in all."""
        everything = self.by_name.values() if self.conda is None else self.conda.records.values()
        return {"distributions": len(everything), "bytes": sum(one.size for one in everything)}

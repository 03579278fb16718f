"""An environment that the user names instead of having it found: requirements, an environment.yml, a ready tarball."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lfm.errors import AnalysisError
from lfm.function import interpreter
from lfm.function.plan import Plan
from lfm.function.resolve import key_of

Environment = str | os.PathLike[str] | Sequence[str]
TARBALLS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
PIP = "pip:"  # before what a solver of conda packages leaves to pip
_COMMENT = re.compile(r"(?:^|\s)#")


@dataclass(frozen=True, slots=True)
class Specification:
    """What to solve for: match specs if there are channels, else requirements as pip takes them."""

    name: str
    requirements: tuple[str, ...]
    channels: tuple[str, ...] = ()


def token(environment: Environment) -> object:
    """What to compare to know that the same words still mean the same environment."""
    if not isinstance(environment, str | os.PathLike):
        return tuple(environment)
    path = _path(environment)
    try:
        state = os.stat(path)
    except OSError:
        return path
    return path, state.st_size, state.st_mtime_ns


def plan(environment: Environment) -> tuple[Plan, str]:
    """The plan for an explicit environment, and its name for people.  AnalysisError if it makes no sense."""
    if not isinstance(environment, str | os.PathLike):
        return _specified(Specification("", tuple(str(line).strip() for line in environment)), "environment=[]")
    path = _path(environment)
    if path.endswith(TARBALLS):
        return _tarball(path)
    if path.endswith((".yml", ".yaml")):
        return _specified(read_yaml(path), path)
    if path.endswith(".txt"):
        return _specified(Specification("", tuple(read_requirements(path))), path)
    raise AnalysisError(
        f"environment={os.fspath(environment)!r} is none: give a list of requirements, an environment.yml, "
        f"a requirements.txt or a tarball made by conda-pack"
    )


def _path(environment: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(os.fspath(environment)))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise AnalysisError(f"environment={path!r} cannot be read: {why}", file=path) from None


def _specified(wanted: Specification, where: str) -> tuple[Plan, str]:
    lines = tuple(sorted(dict.fromkeys(line for line in wanted.requirements if line)))
    if not lines:
        raise AnalysisError(f"{where} names no requirement")
    this, channels = interpreter.this(), wanted.channels
    shown = wanted.name or ", ".join(lines[:3]) + (f" (+{len(lines) - 3})" if len(lines) > 3 else "")
    made = Plan(
        kind="spec", key=key_of("spec", this, (), *lines, "", *channels), interpreter=this, specification=lines,
        channels=channels, host=platform.node(),
    )  # fmt: skip
    return made, shown


def _tarball(path: str) -> tuple[Plan, str]:
    try:
        state = os.stat(path)
        digest = _digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise AnalysisError(f"environment={path!r} cannot be read: {error.strerror}") from None
    key = key_of("tarball", None, (), digest)
    return Plan(
        kind="tarball", key=key, interpreter=None, tarball=path, host=platform.node()
    ), os.path.basename(path)


@lru_cache(maxsize=16)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_requirements(path: str, seen: tuple[str, ...] = ()) -> list[str]:
    """The requirements of a requirements.txt and of those it includes with ``-r``.  Other options are refused."""
    if path in seen:
        return []
    lines = []
    for number, raw in enumerate(_text(path).replace("\\\n", " ").splitlines(), 1):
        line = _COMMENT.split(raw)[0].strip()
        option, _, rest = (
            line.partition(" ") if not line.startswith("--requirement=") else ("-r", "", line[14:])
        )
        if option in ("-r", "--requirement"):
            lines += read_requirements(os.path.join(os.path.dirname(path), rest.strip()), (*seen, path))
        elif line.startswith("-"):
            raise AnalysisError(f"{path}:{number}: {line!r} is not a requirement", file=path, line=number)
        elif line:
            lines.append(re.split(r"\s--", line)[0].strip())
    return lines


def read_yaml(path: str) -> Specification:
    """The part of YAML that an environment.yml is written in: keys, lists of scalars, and one ``pip:`` list."""
    name, section = "", ""
    found: dict[str, list[str]] = {"channels": [], "dependencies": []}
    pip_indent: int | None = None
    for number, raw in enumerate(_text(path).splitlines(), 1):
        line = _COMMENT.split(raw)[0].rstrip()
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if not bare or bare == "---":
            continue
        if bare.startswith("- "):
            if pip_indent is not None and indent <= pip_indent:
                pip_indent = None
            item = _scalar(bare[2:])
            if section == "dependencies" and item == "pip:":
                pip_indent = indent
            elif section in found:
                found[section].append(item if pip_indent is None else PIP + item)
        elif indent == 0 and ":" in bare:
            section, _, value = (part.strip() for part in bare.partition(":"))
            pip_indent = None
            if section == "name":
                name = _scalar(value)
            elif section in found and value:
                if not (value.startswith("[") and value.endswith("]")):
                    raise AnalysisError(f"{path}:{number}: {section} must be a list: items that begin with '-', one a line", file=path, line=number)
                found[section] += [_scalar(part) for part in value[1:-1].split(",") if part.strip()]
        elif section in found:
            raise AnalysisError(f"{path}:{number}: {bare!r} is not understood here", file=path, line=number)
    channels = tuple(c for c in found["channels"] if c != "nodefaults") or ("conda-forge",)
    return Specification(name, tuple(found["dependencies"]), channels)


def _scalar(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text

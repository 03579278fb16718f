"""What an environment is to hold, and why: the client's answer to "what does this function need?".

Made by ``lfm.function`` in the user's interpreter, carried as JSON, built by ``lfm_manager.environments``.
Says where things lie on the client's disk; holds no content.  Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that travels with the environment."""

    executable: str  # resolved, absolute
    version: str  # "3.11.7"
    prefix: str
    base_prefix: str
    soabi: str  # sysconfig SOABI: "cpython-311-x86_64-linux-gnu"
    machine: str  # "x86_64"
    libc: str  # "glibc 2.36"
    fingerprint: str  # sha-256 over the binary, libpython and the names and sizes of the standard library


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution to take along whole."""

    name: str  # normalised (PEP 503)
    version: str
    why: str  # "imported by fit (model.py:12)", "required by pandas", "asked for by imports="
    location: str  # the folder that its RECORD's paths start from (site-packages); conda: the prefix
    metadata: str  # its dist-info (or egg-info) folder; conda: the conda-meta/*.json
    fingerprint: str  # sha-256 over (path, sha-256) of its files as they are now, without .pyc


@dataclass(frozen=True, slots=True)
class Plan:
    """kind: "python" (venv, pyenv, system), "conda" (a conda prefix), "tarball" (ready), "spec" (to be solved)."""

    kind: str
    key: str  # EnvironmentKey
    interpreter: Interpreter | None
    distributions: tuple[Distribution, ...] = ()
    verify: tuple[str, ...] = ()  # modules that must import from the packed environment alone
    specification: tuple[str, ...] = ()  # kind "spec": requirements or match specs
    channels: tuple[str, ...] = ()
    tarball: str = ""  # kind "tarball": its path
    whole: dict[str, int] = field(
        default_factory=dict
    )  # {"distributions": n, "bytes": n} of the client's whole environment
    host: str = ""  # the machine whose disk the paths speak of

    def to_json(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """ValueError if it is not a plan of this version."""
        raw = json.loads(data)
        if raw.pop("version", None) != VERSION:
            raise ValueError("a plan of another version")
        interpreter = raw.pop("interpreter")
        distributions = tuple(Distribution(**d) for d in raw.pop("distributions"))
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(
            interpreter=Interpreter(**interpreter) if interpreter else None,
            distributions=distributions,
            **rest,
        )

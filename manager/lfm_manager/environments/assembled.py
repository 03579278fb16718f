"""What every kind of plan comes to before it is packed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from conda_pack.core import CondaEnv

from lfm_manager.environments.verify import Client

SYSTEM = ("/", "/usr", "/usr/local")  # prefixes too general to say "nothing may come from here"


@dataclass(frozen=True, slots=True)
class Assembled:
    """A conda environment that can be packed, and what is known of it."""

    environment: CondaEnv
    python: str
    machine: str
    libc: str  # "glibc 2.N": what its binaries need at least
    distributions: tuple[dict[str, str], ...]
    forbidden: tuple[str, ...] = ()  # folders of this machine that it must not use
    client: Client | None = None
    warnings: tuple[str, ...] = ()


def forbidden_folders(folders: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(folder for folder in set(folders) if os.path.normpath(folder) not in SYSTEM))

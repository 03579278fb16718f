"""Small JSON files in the user's cache: private, replaced as a whole, and never needed.

A file that cannot be read or written is no file.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """``$LFM_CACHE``, else ``$XDG_CACHE_HOME/lfm``, else ``~/.cache/lfm``; absolute."""
    if chosen := os.environ.get("LFM_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "lfm"


def read(path: Path) -> dict[str, Any]:
    """What is in it; nothing if it is not there or makes no sense."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """OSError if the disk does not take it; the old file is then as it was."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # readable by its owner only
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise

"""What the packed interpreter must have of us to run calls: a folder with the monitor's own modules, and cloudpickle.

Several daemons may fill the same folder at once, and templates read it meanwhile: a file is whole or not there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


def install_runtime(into: Path | str) -> Path:
    """Copy what the packed interpreter must have of us to a folder, which is returned."""
    source = Path(__file__).resolve().parent
    target = Path(into)
    (target / "lfm" / "monitor").mkdir(parents=True, exist_ok=True)
    for file in (source.parent / "__init__.py", *source.glob("*.py")):
        _copy(file, target / file.relative_to(source.parent.parent))
    helper = importlib.util.find_spec("cloudpickle")
    if helper is not None and helper.origin:
        (target / "lib" / "cloudpickle").mkdir(parents=True, exist_ok=True)
        for file in Path(helper.origin).parent.glob("*.py"):
            _copy(file, target / "lib" / "cloudpickle" / file.name)
    return target


def _copy(file: Path, to: Path) -> None:
    part = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.copyfile(file, part)
    part.replace(to)

"""The function that FILE:FUNCTION names on a command line.  To find it its file is run, as an import would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lfm.cli.common import fail


def load(function: str, as_module: bool = False) -> Any:
    """The function that FILE:FUNCTION names; the file becomes a module of its own name.

    Unless ``as_module``, one without a file to its name, whose functions travel by value, as a script's do.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    file, colon, name = function.rpartition(":")
    path = Path(file)
    if not colon or not name:
        raise click.UsageError(f"{function!r} is not FILE:FUNCTION, such as model.py:fit")
    if not path.is_file():
        fail(f"no file {file}")
    spec = spec_from_file_location(path.stem, path.absolute())
    if spec is None or spec.loader is None:
        fail(f"{file} is not a Python file")
    module = module_from_spec(spec)
    sys.path.insert(0, str(path.absolute().parent))  # as if it were run
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        fail(
            f"{file} cannot be imported: {type(error).__name__}: {error}",
            "put what only a script should do below if __name__ == '__main__'",
        )
    if not as_module:
        module.__spec__ = None
        del module.__file__
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            fail(f"{file} has no {name}")
    if not callable(found):
        fail(f"{name} in {file} is not a function")
    return found

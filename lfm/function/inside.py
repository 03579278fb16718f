"""What ``import lfm`` finds inside a call whose environment does not hold lfm.

A module that decorates with ``@lfm.task`` or names an exception of lfm's is imported in the call as well; that
must not drag a client and its network library into every environment.  The overlay brings the few modules below,
which need the standard library only, and in place of the rest something that says so when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_FILES = ("lfm.errors", "lfm.options", "lfm.function.task", "lfm.protocol.resources", "lfm.monitor.usage")
_PACKAGES = ("lfm", "lfm.function", "lfm.protocol", "lfm.monitor")
MODULES = frozenset((*_FILES, *_PACKAGES))
NAMES = frozenset({
    "task", "errors", "Resources", "Usage", "__version__", "LfmError", "CallCancelled", "CallCrashed",
    "ConnectionFailed", "EnvironmentFailed", "RemoteError", "ResourceExhausted", "Unschedulable", "WorkerLost",
})  # fmt: skip

_FACE = '''"""lfm as a call sees it: its decorator and its exceptions, and in place of the rest what says so when used."""

import sys
from importlib.machinery import ModuleSpec

from lfm import errors
from lfm.errors import *
from lfm.function.task import task
from lfm.protocol.resources import Resources, Usage

__version__ = {version!r}


def _absent(module):
    def __getattr__(name):
        if name.startswith("__"):
            raise AttributeError(name)

        def __init__(self, *args, **kwargs):
            raise RuntimeError(f"{{module}}.{{name}} is not in this call's environment; ask for it with imports=['lfm']")

        return type(name, (), {{"__init__": __init__, "__module__": module}})

    return __getattr__


class _Absent:
    """Finds, after all others, the modules of lfm that are not here, so that importing them alone is no error."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return ModuleSpec(name, cls, is_package=True) if name.startswith("lfm.") else None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        module.__getattr__ = _absent(module.__name__)


sys.meta_path.append(_Absent)
__getattr__ = _absent("lfm")
'''


def holds(module: str, names: Iterable[str]) -> bool:
    """Whether ``names`` of one of lfm's modules are there in every call."""
    return NAMES.issuperset(names) if module == "lfm" else module in MODULES


def files() -> dict[str, bytes]:
    """Path below ``lib/`` -> content."""
    import lfm

    root = Path(lfm.__file__).parent.parent
    paths = [f"{name.replace('.', '/')}.py" for name in _FILES]
    contents = {path: (root / path).read_bytes() for path in paths}
    contents |= {f"{name.replace('.', '/')}/__init__.py": b"" for name in _PACKAGES}
    contents["lfm/__init__.py"] = _FACE.format(version=lfm.__version__).encode()
    return contents

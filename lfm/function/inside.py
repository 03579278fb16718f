"""What ``import lfm`` finds inside a call whose environment does not hold lfm.

A module that decorates with ``@lfm.task`` or names an exception of lfm's is imported in the call as well; that
must not drag a client and its network library into every environment.  The overlay brings the few modules below,
which need the standard library only, and in place of the rest something that says so when it is used.
"""

from __future__ import annotations

from pathlib import Path

_FILES = ("lfm.errors", "lfm.options", "lfm.function.task", "lfm.protocol.resources", "lfm.monitor.usage")
_PACKAGES = ("lfm", "lfm.function", "lfm.protocol", "lfm.monitor")
MODULES = frozenset((*_FILES, *_PACKAGES))
NAMES = frozenset({
    "task", "errors", "Resources", "Usage", "__version__", "LfmError", "CallCancelled", "CallCrashed",
    "ConnectionFailed", "EnvironmentFailed", "RemoteError", "ResourceExhausted", "Unschedulable", "WorkerLost",
})  # fmt: skip

_FACE = '''"""lfm as a call sees it: its decorator and its exceptions."""

from lfm import errors
from lfm.errors import *
from lfm.function.task import task
from lfm.protocol.resources import Resources, Usage

__version__ = {version!r}


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    class Absent:
        def __init__(self, *args, **kwargs):
            raise RuntimeError(f"lfm.{{name}} is not in this call's environment; ask for it with imports=['lfm']")

    Absent.__name__ = Absent.__qualname__ = name
    return Absent
'''


def files() -> dict[str, bytes]:
    """Path below ``lib/`` -> content."""
    import lfm

    root = Path(lfm.__file__).parent.parent
    paths = [f"{name.replace('.', '/')}.py" for name in _FILES]
    contents = {path: (root / path).read_bytes() for path in paths}
    contents |= {f"{name.replace('.', '/')}/__init__.py": b"" for name in _PACKAGES}
    contents["lfm/__init__.py"] = _FACE.format(version=lfm.__version__).encode()
    return contents

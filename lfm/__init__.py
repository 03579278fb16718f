"""Run each call of each Python function in its own minimal environment, isolated, measured and right-sized.

The public names; each is loaded when it is first used, so that ``import lfm`` costs next to nothing and
``lfm.monitor`` stays importable where only the standard library is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lfm.alone import monitored as monitored
    from lfm.errors import CallCancelled as CallCancelled
    from lfm.errors import CallCrashed as CallCrashed
    from lfm.errors import ConnectionFailed as ConnectionFailed
    from lfm.errors import EnvironmentFailed as EnvironmentFailed
    from lfm.errors import LfmError as LfmError
    from lfm.errors import RemoteError as RemoteError
    from lfm.errors import ResourceExhausted as ResourceExhausted
    from lfm.errors import Unschedulable as Unschedulable
    from lfm.errors import WorkerLost as WorkerLost
    from lfm.executor import Executor as Executor
    from lfm.function.task import task as task
    from lfm.future import Future as Future
    from lfm.protocol.outcomes import Attempt as Attempt
    from lfm.protocol.resources import Resources as Resources
    from lfm.protocol.resources import Usage as Usage

_HOME = {
    **dict.fromkeys(
        ("CallCancelled", "CallCrashed", "ConnectionFailed", "EnvironmentFailed", "LfmError", "RemoteError",
         "ResourceExhausted", "Unschedulable", "WorkerLost"),
        "lfm.errors",
    ),
    "Executor": "lfm.executor",
    "Future": "lfm.future",
    "task": "lfm.function.task",
    "monitored": "lfm.alone",
    "Attempt": "lfm.protocol.outcomes",
    "Resources": "lfm.protocol.resources",
    "Usage": "lfm.protocol.resources",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lfm' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

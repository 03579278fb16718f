"""``@lfm.task(memory="2GB")``: options that travel with a function.  The function stays itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from lfm.options import Options

F = TypeVar("F", bound=Callable[..., Any])
ATTRIBUTE = "__lfm_options__"


@overload
def task(function: F, /) -> F: ...
@overload
def task(**options: Any) -> Callable[[F], F]: ...
def task(function: Any = None, /, **options: Any) -> Any:
    """Remember options of ``function`` for when it is submitted.

    TypeError for an option that does not exist, ValueError for an amount that is none.
    """
    if function is not None and not callable(function):
        raise TypeError(f"lfm.task() takes a function, not {type(function).__name__}; options are keywords")
    Options.parse(options)

    def remember(function: F) -> F:
        setattr(function, ATTRIBUTE, {**options_of(function), **options})
        return function

    return remember if function is None else remember(function)


def options_of(function: Any) -> dict[str, Any]:
    """What ``task`` remembered of a function, or of the one inside a partial or a method; {} if nothing."""
    while True:
        found = getattr(function, ATTRIBUTE, None)
        if isinstance(found, dict):
            return dict(found)
        inner = getattr(function, "func", None) or getattr(function, "__func__", None)
        if inner is None or inner is function:
            return {}
        function = inner

"""``@lfm.task(memory="2GB")``: options that travel with a function.  The function stays itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import MethodType
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
    for one in layers(function):
        found = getattr(one, ATTRIBUTE, None)
        if isinstance(found, dict):
            return dict(found)
    return {}


def layers(function: Any) -> Iterator[Any]:
    """A callable and what it stands for: the function of a partial, of a method, under a wrapper."""
    for _ in range(32):  # objects may have any attribute that one asks for
        yield function
        held = getattr(function, "__dict__", {})
        inner = held.get("__wrapped__") if type(held) is dict else None
        if isinstance(function, functools.partial):
            inner = function.func
        elif isinstance(function, MethodType):
            inner = function.__func__
        if inner is None:
            return
        function = inner

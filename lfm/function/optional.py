"""Optional parts of packages: what an error message asks to have installed, as they name it.

A package that misses an optional partner rarely raises a ModuleNotFoundError when it is needed: it caught that when
it was imported, and says in words of its own, by one name or the other, what to install.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from lfm.function.installed import Installation
from lfm.function.modules import Kind, Modules

_WORD = re.compile(r"[A-Za-z_][\w.-]*\w")
_PACKAGE = re.compile(rb"\n([^/,\n]+)(?:/__init__)?\.py,")  # the paths of a RECORD that can be imported as one word
MOST_WORDS = 500


def asks_to_install(text: str) -> bool:
    """Whether a message is about something that is not installed."""
    return "install" in text.lower()


def asked_for(text: str, modules: Modules, held: Set[str]) -> str | None:
    """The first module that ``text`` names, by its own or its distribution's name, which is installed here and of none of
    the distributions ``held``."""
    for word in dict.fromkeys(_WORD.findall(text)[:MOST_WORDS]):
        owner = modules.installed.named(word)
        for name in (*_names(owner), word) if owner else (word,):
            found = modules.find(name)
            if found.kind is Kind.INSTALLED and found.owner is not None and found.owner.name not in held:
                return found.name
    return None


def _names(one: Installation) -> Iterator[str]:
    """What can be imported of a distribution."""
    for name in _PACKAGE.findall(one.record):
        yield name.decode("utf-8", "replace")

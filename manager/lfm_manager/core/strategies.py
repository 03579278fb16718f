"""The sizers of every strategy that is in use: the run's, and those that users chose for some of their calls.

All hear of all calls that ended, so that a strategy chosen late starts with what is known already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from lfm_manager.core.little import Little
from lfm_manager.sizing import STRATEGIES, make
from lfm_manager.sizing.sizer import Sizer

HEARD = 2000  # of the latest successes, for a strategy that is chosen later


class Heard(NamedTuple):
    resource: str
    category: str
    input_bytes: int
    measured: float
    wall_s: float
    hint: float | None


class Strategies:
    """``chosen``: by category, where it is not to be the run's own."""

    def __init__(self, sizers: Mapping[str, Sizer], least: Mapping[str, int], chosen: Mapping[str, str]) -> None:
        self._least, self._chosen = least, chosen
        self._own = {resource: self._little(resource, sizer) for resource, sizer in sizers.items()}
        self._others: dict[str, dict[str, Sizer]] = {}
        self._heard: deque[Heard] = deque(maxlen=HEARD)

    def __contains__(self, resource: str) -> bool:
        return resource in self._own

    def _little(self, resource: str, sizer: Sizer) -> Sizer:
        return Little(sizer, self._least[resource]) if resource in self._least else sizer

    def of(self, resource: str, category: str, asked: str | None = None) -> Sizer:
        """Who sizes a call: by the strategy that was asked for it, else its category's, else the run's."""
        name = asked or self._chosen.get(category)
        if name is None or name not in STRATEGIES:  # a newer client's
            return self._own[resource]
        known = self._others.get(name)
        if known is None:
            known = self._others[name] = {r: self._little(r, make(name, r)) for r in self._own}
            for heard in self._heard:
                _tell(known, heard)
        return known[resource]

    def succeeded(self, heard: Heard) -> None:
        """A call ended well."""
        self._heard.append(heard)
        for sizers in (self._own, *self._others.values()):
            _tell(sizers, heard)


def _tell(sizers: Mapping[str, Sizer], heard: Heard) -> None:
    sizers[heard.resource].succeeded(heard.category, heard.input_bytes, heard.measured, heard.wall_s, hint=heard.hint)

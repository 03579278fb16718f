"""How much the next call of a category gets: strategies by name, all of them pure."""

from __future__ import annotations

from collections.abc import Callable

from lfm_manager.sizing.auto import Auto
from lfm_manager.sizing.bucketing import Bucketing
from lfm_manager.sizing.exhaustive_bucketing import exhaustive
from lfm_manager.sizing.first_allocation import FirstAllocation, least_waste, most_throughput
from lfm_manager.sizing.fixed import Fixed
from lfm_manager.sizing.greedy_bucketing import greedy
from lfm_manager.sizing.max_seen import MaxSeen
from lfm_manager.sizing.sizer import Sizer as Sizer
from lfm_manager.sizing.whole_worker import WholeWorker

RESOURCES = ("memory", "disk", "cores")
STRATEGIES: dict[str, Callable[[str], Sizer]] = {
    "auto": Auto,
    "first-allocation-waste": lambda resource: FirstAllocation(resource, least_waste),
    "first-allocation-throughput": lambda resource: FirstAllocation(resource, most_throughput),
    "greedy-bucketing": lambda resource: Bucketing(resource, greedy),
    "exhaustive-bucketing": lambda resource: Bucketing(resource, exhaustive),
    "max-seen": MaxSeen,
    "fixed": lambda resource: Fixed(),
    "whole-worker": lambda resource: WholeWorker(),
}


def make(strategy: str, resource: str) -> Sizer:
    """A fresh sizer of one resource.  ValueError names the strategies that there are."""
    if strategy not in STRATEGIES:
        raise ValueError(f"no sizing strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    if resource not in RESOURCES:
        raise ValueError(f"no sizer for {resource!r}; there are {', '.join(RESOURCES)}")
    return STRATEGIES[strategy](resource)

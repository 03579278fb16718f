"""The numbers by which the manager decides.  Given once; seconds where nothing else is said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    epoch: float = 0.0  # what to add to ``now`` for a time that people read
    lost_max: int = 5  # times that a call may lose its template, monitor or result
    refused_max: int = 20  # times that workers may hand it back unstarted
    deaths_before_alone: int = 2  # workers that died under a call, after which it runs alone to see if it was the cause
    refused_s: float = 120.0  # a call that is handed back still after so long, and often, is given up
    failures_before_aside: int = 8  # calls in a row that came to nothing, after which a worker is set aside
    aside: float = 10.0  # for so long at first, then for twice as long each time
    aside_most: float = 3600.0
    stall: float = 1800.0  # a worker on which nothing begins or ends for so long, though it has calls, is set aside
    unusable_times: int = 3  # that a worker could not use an environment for a passing reason, after which that is final
    probes: int = 2  # calls in flight of a category without a result, while other work is ready
    ahead: int = 8  # calls for each core of a worker that are sent before there is room, where calls are short
    ahead_s: float = 0.05  # for how long such a call should have to wait there at most
    patience: float = 30.0  # how long a call may be passed by others before a worker is reserved for it
    client_grace: float = 300.0  # a client's calls outlive its silence
    orphans: float = 120.0  # calls wait so long for what their client had, once another has come to its session
    retention: float = 7 * 86400.0  # a named or detached session waits so long for its client
    idle: int = 256  # functions, and as many environments that are not packed, that are remembered though nobody uses them
    in_memory: int | None = None  # bytes of arguments and of results, each, beyond which they are left to the store; None: there is none
    recovery: float = 60.0  # after a restart, how long workers may take to come back with their calls

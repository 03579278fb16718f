"""What every sizing strategy is: how much of one resource the next call of a category gets.

One instance serves one resource ("memory", "disk", "cores") of all categories; amounts are bytes, or cores.
A strategy knows no clock and no chance: the same observations give the same sizes, so an earlier run's
measurements are taken up by saying ``succeeded`` once for each of them.

A limit that a user set by hand is expressed by ``cap``: nothing ever exceeds it.  A ``hint`` is softer, what
somebody thinks that the call takes: first attempts stay below it, retries may pass it on their way to ``cap``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Sizer(Protocol):
    """Sizes of one resource, for all categories."""

    def predict(
        self,
        category: str,
        input_bytes: float,
        hint: float | None,
        cap: float,
        *,
        in_flight: int = 0,
        share: float = 0.0,
    ) -> float:
        """The first allocation of a call: at most ``cap`` (the largest worker, or the limit) and at most ``hint``.

        ``in_flight`` calls of this category are out and have not ended; leave it 0 where the scheduler holds a
        category's crowd back until its first result.  ``share`` is what the call's cores claim of a worker
        anyway (memory x cores of the call / cores of the worker): a category without a result starts no lower.
        """
        ...

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        """A call ended well and had used ``measured`` at its peak.  What cannot be a measurement is not learned."""
        ...

    def exhausted(
        self,
        category: str,
        attempt: int,
        allocation: float,
        measured: float,
        cap: float,
        *,
        hint: float | None = None,
        spent_s: float | None = None,
    ) -> float | None:
        """The next allocation after attempt number ``attempt`` (from 1) was too small; None: ``cap`` was too small.

        ``spent_s`` is how long the attempt lived, 0 where its size was not to blame: the node had no room to let
        it grow.  Not given, it is taken to be as long as a whole call.
        """
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A strategy that can also say what running calls will come to."""

    def expected(self, category: str, input_bytes: float, at_least: float) -> float | None:
        """What a call comes to on average that takes more than ``at_least``; None: nothing is known of its like."""
        ...

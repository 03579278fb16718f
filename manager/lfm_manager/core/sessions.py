"""Who submits: one client session, which may lose its link and come back.  Knows nothing of what it submits."""

from __future__ import annotations

from dataclasses import dataclass, field

from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.messages import ClientHello


@dataclass(slots=True, eq=False)
class Session:
    """``tasks`` are all that it submitted and has not released."""

    key: str
    hello: ClientHello
    peer: PeerId | None
    tasks: dict[TaskId, None] = field(default_factory=dict)
    functions: set[FunctionId] = field(default_factory=set)  # that it declared
    environments: set[EnvironmentKey] = field(default_factory=set)  # that it declared
    held: set[Digest] = field(default_factory=set)  # what ex.put() made: kept while the session lives
    millicores: int = 0  # of its calls now placed: the measure of fairness
    expires: float | None = None  # when it counts as gone, if it does not come back
    displaced: set[str] = field(default_factory=set)  # clients that had it, until another came with its name
    former: str = ""  # for people: the client that had it before
    orphans_due: float | None = None  # when to look for calls that wait for what such a client had
    over: bool = False  # it said goodbye, or never came back: what still runs of it is only being stopped

    def has_calls_of_others(self) -> bool:
        """Whether a client that had the session before submitted some of its calls."""
        return any(not task.startswith(f"{self.hello.session}-") for task in self.tasks)


def session_key(hello: ClientHello) -> str:
    """A named session is the same whenever its user comes back with that name."""
    return f"{hello.user}/{hello.name}" if hello.name else hello.session

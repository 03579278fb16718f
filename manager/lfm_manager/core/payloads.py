"""Messages without the bytes that ride in them, where a store has these.  Pure."""

from __future__ import annotations

from lfm.protocol.messages import Finished, Submit
from lfm.protocol.outcomes import Inline, Payload, Raised, Returned, payload_of

SMALL = 1024  # bytes that are not worth to be kept apart
NOTHING = Inline(b"")


def inline_size(payload: Payload | None) -> int:
    return len(payload.data) if isinstance(payload, Inline) else 0


def without_arguments(submit: Submit) -> Submit:
    return submit.but(arguments=NOTHING)


def inline_bytes(finished: Finished) -> int:
    """What of the end of a call is its value, and what it printed."""
    return inline_size(payload_of(finished.outcome)) + len(finished.stdout) + len(finished.stderr)


def without_value(finished: Finished) -> Finished:
    """Neither value nor output."""
    outcome = finished.outcome
    match outcome:
        case Returned(Inline()):
            outcome = Returned(NOTHING)
        case Raised(Inline()):
            outcome = outcome.but(error=None)
        case _:
            pass
    return finished.but(outcome=outcome, stdout=b"", stderr=b"")

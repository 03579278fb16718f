"""Whether what a message says can be: numbers that are none, negative or absurd never reach the books.  Pure.

The codec has checked shapes and types.  A peer that has a key and still says such things is broken, and its session
ends.  Only a measurement that cannot be is dropped and the call's end taken without it: its value is what counts.
"""

from __future__ import annotations

import math

from lfm.protocol import messages as m
from lfm.protocol.outcomes import Blob, Exhausted, Payload, Raised, Returned
from lfm.protocol.resources import MOST_BYTES, MOST_CORES, MOST_DEVICES, Expected, Request, Resources, Usage

NAME = 1000  # characters


def complaint(message: m.Message) -> str:
    """What is wrong with it, for a person; "" if nothing is."""
    match message:
        case m.Submit():
            return _submit(message)
        case m.CallEnded(outcome=outcome):
            return _outcome(outcome)
        case m.LimitRaised(allocation=amount) | m.OfferChanged(offer=amount):
            return _amount(amount)
        case m.WorkerHello():
            return _worker(message)
        case m.ClientHello(session=session, name=name):
            return "" if 0 < len(session) <= NAME and len(name or "") <= NAME else "a session without a proper name"
        case m.FetchBlob(offset=offset, length=length):
            return "" if 0 <= offset <= MOST_BYTES and 0 < length <= m.CHUNK else f"a range from {offset} of {length} bytes"
        case m.DeclareEnvironment(plan=plan):
            return _payload(plan)
        case m.DeclareFunction(code=code, overlay=overlay):
            return _payload(code) or _payload(overlay)
        case m.EnvironmentMade(tarball=blob):
            return _payload(blob)
        case m.EnvironmentComing(stage=stage, done=done, total=total):
            fine = 0 <= done <= total <= MOST_BYTES and stage in ("send", "unpack")
            return "" if fine else f"an environment of which {done} of {total} bytes came"
        case m.SeekBlob(size=size):
            return "" if 0 <= size <= MOST_BYTES else f"a blob of {size} bytes"
        case _:
            return ""


def _submit(submit: m.Submit) -> str:
    if not 0 < len(submit.task) <= NAME:
        return "a call without a proper name"
    if not abs(submit.priority) < math.inf:
        return f"a priority of {submit.priority}"
    if submit.retries < 0 or submit.chunk < 0:
        return f"{submit.retries} retries of {submit.chunk} calls in one"
    return _request(submit.request) or _payload(submit.arguments) or next(filter(None, map(_payload, submit.blobs)), "")


def _request(asked: Request) -> str:
    cores, memory, disk, gpus = asked.cores, asked.memory, asked.disk, asked.gpus
    if (
        (cores is None or 0 < cores <= MOST_CORES) and (memory is None or 0 <= memory <= MOST_BYTES)
        and (disk is None or 0 <= disk <= MOST_BYTES) and (gpus is None or 0 <= gpus <= MOST_DEVICES)
        and (asked.wall_time is None or 0 <= asked.wall_time < math.inf)
        and (asked.processes is None or 0 <= asked.processes <= MOST_BYTES)
        and (asked.expect is None or _may_be_expected(asked.expect))
    ):
        return ""
    return f"nobody can have {asked}"


def _may_be_expected(guess: Expected) -> bool:
    return (
        (guess.cores is None or 0 <= guess.cores <= MOST_CORES) and (guess.memory is None or 0 <= guess.memory <= MOST_BYTES)
        and (guess.disk is None or 0 <= guess.disk <= MOST_BYTES)
        and (guess.wall_time is None or 0 <= guess.wall_time < math.inf)
    )  # fmt: skip


def _amount(amount: Resources | None) -> str:
    if amount is None or (
        0 <= amount.cores <= MOST_CORES and 0 <= amount.memory <= MOST_BYTES and 0 <= amount.disk <= MOST_BYTES
        and 0 <= amount.gpus <= MOST_DEVICES and (amount.wall_time is None or 0 <= amount.wall_time < math.inf)
    ):
        return ""
    return f"nobody has {amount}"


def absurd(used: Usage | None) -> bool:
    """Whether no call can have used that."""
    return used is not None and not (
        0 <= used.wall_s < math.inf and 0 <= used.cpu_s < math.inf and 0 <= used.cores < math.inf
        and 0 <= used.cores_peak < math.inf and 0 <= used.memory <= MOST_BYTES and 0 <= used.disk <= MOST_BYTES
    )  # fmt: skip


def _worker(hello: m.WorkerHello) -> str:
    if not (0 < len(hello.session) <= NAME and 0 < len(hello.name) <= NAME and len(hello.gpu_devices) <= MOST_DEVICES):
        return "a worker without a proper name"
    return _amount(hello.offer) or next(filter(None, (_amount(r.allocation) for r in hello.running)), "")


def _outcome(outcome: object) -> str:
    match outcome:
        case Returned(value=payload) | Raised(error=payload):
            return _payload(payload)
        case Exhausted(limit=limit, measured=measured, at_s=at_s):
            fine = 0 <= limit < math.inf and 0 <= measured < math.inf and 0 <= at_s < math.inf
            return "" if fine else f"a limit of {limit} exceeded with {measured} after {at_s} s"
        case _:
            return ""


def _payload(payload: Payload | None) -> str:
    if isinstance(payload, Blob) and not 0 <= payload.size <= MOST_BYTES:
        return f"a blob of {payload.size} bytes"
    return ""

"""From a function and its arguments to the messages that submit it: pickled in the caller's thread, large parts spooled.

Knows what has been described already, so that environment and function are put into words once a session.
What is installed is presumed to be as it was when last looked at, and looked at in a thread of its own: what
depends on it does not leave before; if it cannot be looked at, its calls end with the reason.
"""

from __future__ import annotations

import itertools
import logging
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lfm.function import sent
from lfm.function.memory import Memory
from lfm.function.pack import Packed, Packer
from lfm.options import Options
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, TaskId
from lfm.protocol.messages import DeclareEnvironment, DeclareFunction, Submit
from lfm.protocol.outcomes import Blob
from lfm.spool import Spool

if TYPE_CHECKING:
    from lfm.function.handle import Handle

log = logging.getLogger(__name__)
MOST_HANDLES = 10_000  # among the arguments of one call: each is a file of its own on every node
ArgumentLists = list[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Described:
    """A function as it is declared, and what its decorator said about its calls."""

    environment: DeclareEnvironment
    function: DeclareFunction
    options: Options
    packed: Packed


class Outgoing:
    """Makes messages.  Safe for several threads."""

    def __init__(self, spool: Spool, looked: Callable[[], object]) -> None:
        """``looked`` is called, in whatever thread, when functions that could not leave can."""
        self.spool = spool
        self._looked = looked
        self._packer = Packer(looking=Memory())
        self._doubts = itertools.count()
        self._doubtful: dict[FunctionId, tuple[int, Described]] = {}  # each time anew
        self._better: dict[FunctionId, Described] = {}  # what became of those that were presumed wrongly
        self._failed: dict[FunctionId, Exception] = {}  # why they cannot leave
        self._looks = False
        self._warned: set[str] = set()
        self._lock = threading.Lock()  # of what is described
        self.described: dict[FunctionId, Described] = {}
        self._environments: dict[EnvironmentKey, DeclareEnvironment] = {}

    def submit(
        self, task: TaskId, fn: Callable[..., Any], calls: ArgumentLists, chunked: bool, options: Options, waiting: int
    ) -> tuple[Submit, Described]:
        """The message for one call (or a chunk of them); raises what analysing and pickling raise."""
        handles: list[Handle] = []
        packed = self._packer.pack(fn, imports=options.imports, exclude=options.exclude, environment=options.environment)
        if chunked:
            packed, pieces = self._packer.object(packed, calls, handles)
        else:
            packed, pieces = self._packer.arguments(packed, *calls[0], handles)
        described = self.described.get(packed.function) or self._describe(packed)
        if not self._packer.sure(packed):
            self._doubt(described)
        elif packed.function in self._better or packed.function in self._failed:  # it once was wrong, and is right again
            self._better.pop(packed.function, None)
            self._failed.pop(packed.function, None)
        options = options.over(described.options)
        if len(handles) > MOST_HANDLES:
            raise ValueError(
                f"{len(handles)} objects of put() among the arguments of one call, at most {MOST_HANDLES} may be; "
                "put() what belongs together as one object, such as a list"
            )
        blobs = tuple(Blob(Digest(handle.digest), handle.size) for handle in handles)
        for blob in blobs:
            if not self.spool.holds(blob.digest):
                raise ValueError("a handle among the arguments was made by another executor, or this one is shut down")
            self.spool.hold(blob)
        return Submit(
            task, packed.function, self.spool.payload(pieces, waiting), options.request(), options.category,
            options.retries or 0, options.priority or 0.0, len(calls) if chunked else 0, blobs,
        ), described

    def _describe(self, packed: Packed) -> Described:
        for text in packed.warnings:
            if text not in self._warned:
                self._warned.add(text)
                warnings.warn(text, UserWarning, stacklevel=5)  # where submit() was called
        options = Options.parse(packed.options)
        key = EnvironmentKey(packed.plan.key)
        with self._lock:
            if (known := self.described.get(packed.function)) is not None:
                return known
            environment = self._environments.get(key)
            if environment is None:
                plan = self.spool.payload([packed.plan.to_json()], 0)
                environment = self._environments[key] = DeclareEnvironment(key, plan, packed.environment_name)
            function = DeclareFunction(
                packed.function, packed.name, packed.category, key, self.spool.payload(packed.code, 0),
                None if packed.overlay is None else self.spool.payload([packed.overlay], 0), packed.preload,
            )
            sent.note(key, packed.name, packed.overlay)
            described = self.described[packed.function] = Described(environment, function, options, packed)
            return described

    def _doubt(self, described: Described) -> None:
        with self._lock:
            function = described.function.function
            self._doubtful[function] = next(self._doubts), described
            self._failed.pop(function, None)
            begin, self._looks = not self._looks, True
        if begin:
            try:
                threading.Thread(target=self._look, name="lfm-look", daemon=True).start()
            except RuntimeError:  # the interpreter is about to end and starts no more threads
                self._look()

    def doubtful(self, function: FunctionId) -> bool:
        """Whether it may not leave yet."""
        return function in self._doubtful

    def best(self, function: FunctionId) -> Described:
        """The function as it is to be declared; raises what keeps it here."""
        if (error := self._failed.get(function)) is not None:
            raise error
        return self._better.get(function) or self.described[function]

    def homes(self, submit: Submit | None) -> Mapping[str, str]:
        """Where the files of a call's overlay lie here."""
        described = self.described.get(submit.function) if submit is not None else None
        return described.packed.homes if described is not None else {}

    def _look(self) -> None:
        """Until nothing is in doubt."""
        while True:
            with self._lock:
                looking = dict(self._doubtful)
                if not looking:
                    self._looks = False
                    return
            for function, (_, described) in looking.items():
                try:
                    self._settle(function, described)
                except Exception as error:
                    log.info("%s cannot leave", described.function.name, exc_info=True)
                    self._failed[function] = error
            with self._lock:
                for function, doubt in looking.items():
                    if self._doubtful[function] is doubt:  # else it was submitted once more meanwhile, and is unsure again
                        del self._doubtful[function]
            self._looked()

    def _settle(self, function: FunctionId, described: Described) -> None:
        packed = self._packer.settle(described.packed)
        self._better.pop(packed.function, None)  # it may once have been wrong
        if packed.function != function:
            self._better[function] = self.described.get(packed.function) or self._describe(packed)

    def declares(self, key: EnvironmentKey) -> bool:
        """Whether calls from here run in it."""
        return key in self._environments

    def plan(self, key: EnvironmentKey) -> bytes | None:
        """What an environment is to hold; None if it was not declared here."""
        declared = self._environments.get(key)
        if declared is None:
            return None
        plan = declared.plan
        return self.spool.store.path(plan.digest).read_bytes() if isinstance(plan, Blob) else plan.data

    def repair(self, function: FunctionId, module: str, where: str) -> Described | None:
        """The function in an environment that also has ``module``; None if that cannot be had from here."""
        packed = self._packer.repair(self.described[function].packed, module, where)
        if packed is None or packed.function == function:
            return None
        packed = self._packer.settle(packed)  # in the repair's own thread
        return self.described.get(packed.function) or self._describe(packed)

    def asked_for(self, function: FunctionId, text: str) -> str | None:
        """A module that an error message of the function's call asks for, and its environment lacks."""
        return self._packer.asked_for(self.described[function].packed, text)

    def over(self, submit: Submit) -> None:
        """The call is over: what it alone needed is not needed any more."""
        if isinstance(submit.arguments, Blob):
            self.spool.release(submit.arguments)
        for blob in submit.blobs:
            self.spool.release(blob)

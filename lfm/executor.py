"""``lfm.Executor``: concurrent.futures' Executor, whose calls run each in its own minimal environment, measured.

The face only: options and chunks become calls of a session (``lfm.session``), which does the work.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import re
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lfm.errors import ConnectionFailed
from lfm.options import Options
from lfm.protocol.resources import parse_size

if TYPE_CHECKING:
    from types import TracebackType

    from lfm.function.handle import Handle
    from lfm.future import Future
    from lfm.session import Session

T = TypeVar("T")

_views = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Status:
    """What ``lfm status --json`` prints."""

    manager: dict[str, Any]
    workers: tuple[dict[str, Any], ...]
    calls: dict[str, int]  # state -> how many
    categories: tuple[dict[str, Any], ...]
    alerts: tuple[Any, ...]


class _Face(concurrent.futures.Executor):
    """What an executor and its views share: a session, options, and a number to tell their calls apart."""

    _session: Session
    _options: Options
    _via: int

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` on some worker.  RuntimeError after shutdown; all else is the future's."""
        return self._session.submit(fn, [(args, kwargs)], self._options, chunked=False, via=self._via)

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1, **more: Any
    ) -> Iterator[T]:
        """Like ``map``, in parallel; values in order.  ``chunksize`` calls share one fork and one measurement."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **more)
        chunks = _chunks(zip(*iterables), chunksize)  # noqa: B905  # the shortest ends it, as in map()
        chunked = _Chunks(self)
        lists: Iterator[list[T]] = concurrent.futures.Executor.map(chunked, fn, chunks, timeout=timeout, **more)  # type: ignore[arg-type]
        return _each(lists, chunked)

    def options(self, **options: Any) -> View:
        """An executor with other defaults, on the same session.

        memory, disk ("4GB", bytes), cores, gpus, processes, wall_time ("1h30m", seconds): what is said is a limit;
        what is not said is learned.  expect: what you think a call takes; sizes the first ones, and is no limit.
        labels, strategy, retries, priority, category, imports, exclude, environment.
        """
        return View(self, Options.parse(options).over(self._options))

    def put(self, obj: Any) -> Handle:
        """Send an object once per node; passed as an argument, it arrives as the object."""
        return self._session.put(obj)

    def status(self) -> Status:
        """How the run stands.  LfmError if the manager does not answer."""
        answer = self._session.ask("status")
        return Status(
            answer.get("manager", {}), tuple(answer.get("workers", ())), answer.get("calls", {}),
            tuple(answer.get("categories", ())), tuple(answer.get("alerts", ())),
        )

    @property
    def _max_workers(self) -> int:
        """How many calls can run at once: true now, and different when workers come or go."""
        return self._session.slots

    def __reduce__(self) -> NoReturn:
        raise TypeError("an executor cannot be sent to a call; submit from here, or name a running manager inside the call: lfm.Executor(NAME)")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Wait for all calls; but after Ctrl-C (or sys.exit) end them."""
        if kind is not None and not issubclass(kind, Exception):
            self._kill()
            return
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._kill()
            raise

    def _kill(self) -> None:
        raise NotImplementedError


class Executor(_Face):
    """Runs calls on the workers of a manager: a running one, or one that it starts here for itself."""

    def __init__(
        self, run: str | os.PathLike[str] | None = None, *, workers: int | None = None, cores: float | None = None,
        memory: str | int | None = None, session: str | None = None,
    ) -> None:
        """``run``: name, run directory or connection file of a running manager; None: ``LFM_RUN``, else a manager
        and ``workers`` workers (1) of ``cores`` and ``memory`` each are started on this machine, and end with it.
        ``session``: a name by which its calls are found again, by this process after ``detach`` or by another;
        the latest has them.

        ConnectionFailed if the manager cannot be reached.
        """
        if workers is not None and workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if cores is not None and cores <= 0:
            raise ValueError("cores must be greater than 0")
        if session is not None and not re.fullmatch(r"[\w.-]+", session):
            raise ValueError(f"session={session!r}: a name of letters, digits, '.', '_' and '-'")
        sized = None if memory is None else parse_size(memory)
        self._via = next(_views)
        self._options = Options()
        if run is None and not os.environ.get("LFM_RUN"):
            if "LFM_TASK" in os.environ:
                raise ConnectionFailed(
                    "a call cannot start a manager of its own; submit from the client, or name a running one: lfm.Executor(NAME)"
                )
            if session is not None:
                raise TypeError("a session needs a manager that outlives this process: lfm.Executor(RUN, session=...)")
            from lfm.embedded import Embedded

            embedded = Embedded(workers or 1, cores, sized)
            try:  # they start while we import what it takes to talk to them
                from lfm.session import Session

                self._session = Session(embedded.connection, embedded, embedded.directory / "blobs")
            except BaseException:
                embedded.stop()
                raise
        else:
            from lfm.run import find_run
            from lfm.session import Session

            if run is not None and (workers, cores, memory) != (None, None, None):
                raise TypeError("workers=, cores= and memory= size the workers of an own manager; a running one was named")
            self._session = Session(lambda: find_run(run, "client"), blobs=_blobs_here(run), called=session)
        # An executor that nobody holds any more answers what it was asked, and ends.
        weakref.finalize(self, self._session.close, wait=False).atexit = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; answer those that were submitted, unless they wait and ``cancel_futures``."""
        self._session.close(wait=wait, cancel=cancel_futures)

    def futures(self) -> list[Future[Any]]:
        """The futures of the calls that are not over.

        Of a named session also those that are, until their result is taken; whoever submitted them.
        """
        return self._session.futures()

    def detach(self, timeout: float | None = None) -> None:
        """Leave a named session as soon as the manager has all that its calls need; they go on.

        ``lfm.Executor(RUN, session=NAME).futures()`` has them then.  TimeoutError after ``timeout`` seconds.
        """
        self._session.leave(timeout)

    def _kill(self) -> None:
        self._session.close(kill=True)

    def __repr__(self) -> str:
        return f"<lfm.Executor {self._session.where}, {self._max_workers} calls at once>"


def _blobs_here(run: str | os.PathLike[str] | None) -> Path | None:
    """A running manager's store, if it runs on this machine."""
    from lfm.run import ConnectionFile, locate

    file = locate(run, "client")
    store = file.parent / "blobs"
    return store if ConnectionFile.read(file).host == socket.gethostname() and store.is_dir() else None


class View(_Face):
    """An executor with other options.  Its shutdown ends the view, not the executor that it was made from."""

    def __init__(self, of: _Face, options: Options) -> None:
        self._of = of  # also keeps the executor from being collected
        self._session = of._session
        self._options = options
        self._via = next(_views)
        self._over = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Like ``Executor.submit``, with this view's options."""
        if self._over:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls through this view, and wait for those that were."""
        self._over = True
        mine = self._session.outstanding(self._via)
        if cancel_futures:
            for future in mine:
                future.cancel()
        if wait:
            concurrent.futures.wait(mine)

    def _kill(self) -> None:
        self._over = True
        for future in self._session.outstanding(self._via):
            if not future.cancel():
                future.kill()

    def __repr__(self) -> str:
        return f"<lfm.View of {self._of!r}: {self._options}>"


class _Chunks(_Face):
    """Submits its only argument, a list of argument tuples, as one chunk."""

    def __init__(self, of: _Face) -> None:
        self._of = of

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        of = self._of
        if getattr(of, "_over", False):
            raise RuntimeError("cannot schedule new futures after shutdown")
        return of._session.submit(fn, [(call, {}) for call in args[0]], of._options, chunked=True, via=of._via)


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(calls, size)):
        yield chunk


def _each(chunks: Iterator[list[T]], keep: object) -> Iterator[T]:
    """The values one by one, none held longer than it must be; ``keep`` lives until then."""
    for values in chunks:
        values.reverse()
        while values:
            yield values.pop()

"""A client's session with a manager: one thread owns the link; everybody else leaves word in its outbox.

Owns how the session starts, breaks and ends.  Knows nothing of pickling (``lfm.outgoing``), of what becomes of
a call (``lfm.calls``), or of how a manager came to be here (``lfm.embedded``).
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import secrets
import socket
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as PlainFuture
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from lfm.calls import Calls
from lfm.connection import Dialer
from lfm.errors import ConnectionFailed, LfmError, ProtocolError, Unschedulable
from lfm.function.handle import Handle
from lfm.function.pickling import pickle_object
from lfm.future import Future
from lfm.headroom import Headroom
from lfm.incoming import Incoming
from lfm.making import Makings
from lfm.options import Options
from lfm.outgoing import ArgumentLists, Outgoing
from lfm.progress import EnvironmentNews
from lfm.protocol import messages as m
from lfm.protocol import outcomes as o
from lfm.protocol.ids import TaskId
from lfm.repair import Repair
from lfm.run import ConnectionFile
from lfm.spool import Spool
from lfm.summary import wanted
from lfm.terminal import terminal

if TYPE_CHECKING:
    from lfm.embedded import Embedded

CONNECT_TIMEOUT = 30.0  # seconds for the first handshake, and for an answer
BLIP = 3.0  # seconds without a manager that are not worth a word
PATIENCE = 600.0  # seconds without a manager after which calls are given up
GONE_PATIENCE = 10.0  # the same, once its connection file was taken back
ON_THE_WAY = 8192  # messages that may wait in the link; the rest waits here, not yet encoded
RELEASE_AFTER, RELEASE_MANY = 0.1, 256  # seconds, results: the manager may keep what we have for so long
LEAVE_LOOK, LEAVE_AT_ONCE = 0.1, 5.0  # seconds: between two looks whether all is said; the same after Ctrl-C, at most
HEADROOM, SHORT_PAUSE = 16 << 20, 0.1  # bytes that one turn may take; seconds between looks whether they are there again
CHECK_EVERY = 1.0  # seconds, where the system cannot tell that a process has ended



@dataclass(frozen=True, slots=True)
class _Withdraw:
    """Cancelled here, and to be taken back there."""

    future: Future[Any]


@dataclass(frozen=True, slots=True)
class _Stop:
    """To be killed, under whatever id it then has."""

    future: Future[Any]


@dataclass(frozen=True, slots=True)
class _Taken:
    """Somebody has what came of this call."""

    task: TaskId


Word = Future[Any] | _Withdraw | _Stop | _Taken | Repair | m.Message  # what is left in the outbox
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """The link, its thread, and the calls that are not over."""

    def __init__(
        self, connection: Callable[[], ConnectionFile], embedded: Embedded | None = None, blobs: Path | None = None,
        called: str | None = None,
    ) -> None:  # fmt: skip
        """``blobs``: the manager's store, if it lies on this machine.  ``called``: by which the session is found again."""
        self.name = secrets.token_hex(6)
        self._called = called
        self._embedded = embedded
        self._connection = connection
        self._pid = os.getpid()
        self._dialer = Dialer(connection, self._hello)
        self._run_name = "" if embedded else self._dialer.connect(CONNECT_TIMEOUT).run
        self.spool = Spool(embedded.directory if embedded else None, blobs)
        self._outgoing = Outgoing(self.spool, self._rouse)
        self._incoming = Incoming(self.spool, self._dialer.send, lambda text: self._warn(text, UserWarning))
        self._news = EnvironmentNews()
        self._makings = Makings(self._outgoing.plan, self.spool, self._post)
        self._numbers = itertools.count(1)
        self._calls = Calls(
            self._dialer.send, self._outgoing, self._incoming, new_id=self._new_id, repaired=self._post,
            keep=called is not None,
        )  # fmt: skip
        self._others: dict[str, int] = {}  # who else submitted calls of this session, in their order
        self._complete = called is None  # all that they submitted is known here

        self._lock = threading.Lock()  # of the outbox's door: what was let in before it closed is answered
        self._closing = self._leaving = self._ended = False
        self._broken: Exception | None = None
        self._outbox: deque[Word] = deque()
        self._asleep = False
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)

        self._headroom, self._short = Headroom(HEADROOM), False
        self._inline_in = 0  # bytes of arguments that were put in messages
        self._questions: dict[int, PlainFuture[Any]] = {}
        self.capacity: m.Capacity | None = None
        self._release_at: float | None = None
        self._warned_lost = False
        self._ended_processes = True  # maybe
        self._spoken, self._due = True, 0.0  # whether the manager has, or time has passed; when something is due
        self._watched: set[int] = set()  # descriptors of the embedded processes
        self._thread = threading.Thread(target=self._run, name="lfm-session")
        self._thread.start()
        _sessions.add(self)

    def _hello(self) -> m.ClientHello:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's uid without a name
            user = str(os.getuid())
        return m.ClientHello(self.name, user, socket.gethostname(), self._pid, self._called)

    # ---------------------------------------------------------------- for everybody: leaving word

    def submit(self, fn: Callable[..., Any], calls: ArgumentLists, options: Options, *, chunked: bool, via: int) -> Future[Any]:
        """A future at once; what cannot be pickled is its exception."""
        self._check_open()
        future: Future[Any] = Future()
        future._via = via
        future._id = self._new_id()
        waiting = self._inline_in - self._calls.inline_over
        try:
            submit, described = self._outgoing.submit(future._id, fn, calls, chunked, options, waiting)
        except Exception as error:
            future._name = getattr(fn, "__qualname__", repr(fn))
            future.set_exception(error)
            return future
        future._submit = submit
        future._name = described.function.name
        future._environment = described.environment.key
        future._owner = self
        with self._lock:
            self._check_open()
            if isinstance(submit.arguments, o.Inline):
                self._inline_in += len(submit.arguments.data)
            self._outbox.append(future)
            self._wake()
        return future

    def _new_id(self) -> TaskId:
        return TaskId(f"{self.name}-{next(self._numbers)}")

    def put(self, obj: Any) -> Handle:
        """Keep an object's payload here, for whoever needs it, until the session ends."""
        self._check_open()
        pieces, met = pickle_object(obj)
        blob = self.spool.keep(pieces)
        return Handle(blob.digest, blob.size, met)

    def cancelled(self, future: Future[Any]) -> None:
        """A future was cancelled here: whatever the manager still does for it is in vain."""
        self._post(_Withdraw(future))

    def kill(self, future: Future[Any]) -> None:
        """Stop a call, wherever it is."""
        self._post(_Stop(future))

    def taken(self, future: Future[Any]) -> None:
        """What came of a call need not be kept for another process of this session."""
        self._post(_Taken(future._id))

    def futures(self) -> list[Future[Any]]:
        """All calls of the session that are not over, or whose result nobody has taken; in their order."""
        if not self._complete:
            self.ask("info")  # the answer comes after all that the manager says to whom it greets
            self._complete = True
        kept = [future for future in self._calls.kept() if future._kept]  # else it is just being taken
        found = {id(future): future for future in (*kept, *self.outstanding())}
        return sorted(found.values(), key=self._order)

    def _order(self, future: Future[Any]) -> tuple[int, list[int]]:
        who, _, number = future._id.rpartition("-")
        return self._others.get(who, len(self._others)), [int(part) for part in number.split(".")]

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """A question to the manager.  LfmError if it cannot be answered."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("this cannot be asked from a future's callback; ask from a thread of your own")
        answer: PlainFuture[Any] = PlainFuture()
        number = next(self._numbers)
        self._questions[number] = answer
        try:
            if not self._post(m.Query(number, what, arguments)):
                self._check_open()
            body = answer.result(CONNECT_TIMEOUT)
        except TimeoutError:
            raise ConnectionFailed(f"the manager did not answer in {CONNECT_TIMEOUT:.0f} s; see: lfm manager info") from None
        finally:
            self._questions.pop(number, None)
        if not isinstance(body, dict) or "error" in body:
            raise LfmError(str(body.get("error") if isinstance(body, dict) else body))
        return body

    @property
    def slots(self) -> int:
        """How many calls can run at once."""
        if self.capacity is not None:
            return max(1, self.capacity.calls)
        return self._embedded.slots if self._embedded is not None else 1

    @property
    def where(self) -> str:
        """For people: which run this is."""
        return "on this machine" if self._embedded is not None else f"of run {self._run_name!r}"

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("this executor belongs to the process that forked this one; make your own")
        if self._broken is not None:
            raise type(self._broken)(str(self._broken))
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _post(self, word: Word) -> bool:
        with self._lock:
            if self._ended or self._broken is not None or self._pid != os.getpid():
                return False
            self._outbox.append(word)
            self._wake()
        return True

    def _rouse(self) -> None:
        with self._lock:
            self._wake()

    def _wake(self) -> None:
        """With the lock: the pipe is closed at the end, and its number may then be another file's."""
        if self._asleep and not self._ended:
            self._asleep = False  # one wake is enough
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_in, b"\0")

    # ---------------------------------------------------------------- for everybody: the end

    def outstanding(self, via: int | None = None) -> list[Future[Any]]:
        """The futures that are not over (of one view)."""
        with self._lock:  # nothing is added meanwhile; what the thread takes from the one it puts into the other
            waiting = [word for word in self._outbox.copy() if isinstance(word, Future)]
        found = {id(f): f for f in (*waiting, *self._calls.snapshot())}
        return [f for f in found.values() if not f.done() and (via is None or f._via == via)]

    def close(self, wait: bool = True, cancel: bool = False, kill: bool = False) -> None:
        """Take no more.  The rest is answered first, unless it is cancelled (waiting) or killed (all).

        A session with a name is left instead of killed.
        """
        if self._pid != os.getpid():
            return
        if kill and self._called is not None:  # found again by its name
            try:
                self.leave(LEAVE_AT_ONCE)
            except (TimeoutError, LfmError):
                with self._lock:
                    self._closing = self._leaving = self._asleep = True
                    self._wake()
            return
        with self._lock:
            self._closing = True
        if cancel or kill:
            for future in self.outstanding():
                if not future.cancel() and kill:
                    self.kill(future)
        with self._lock:
            self._asleep = True  # whatever it is doing, it has to look
            self._wake()
        if wait and threading.current_thread() is not self._thread:
            with terminal:
                self._thread.join()

    def leave(self, timeout: float | None = None) -> None:
        """Go, once the manager has all that the calls need; they go on without us.

        TimeoutError, and nothing has changed, if that takes longer than ``timeout`` seconds.
        """
        if self._called is None:
            raise RuntimeError("only a session with a name can be left and found again: lfm.Executor(RUN, session=NAME)")
        if self._ended or self._pid != os.getpid():
            return
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            before, self._closing = self._closing, True
        while not self._ended and (self._calls.repairing or self._needed()):
            if end is not None and time.monotonic() >= end:
                with self._lock:
                    self._closing = before
                raise TimeoutError("the manager does not have yet all that the calls need")
            time.sleep(LEAVE_LOOK)
        with self._lock:
            self._leaving = self._asleep = True
            self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _needed(self) -> int:
        """How many calls could not run without this process."""
        try:
            return int(self.ask("leaving")["needed"])
        except RuntimeError:  # all is over, and the session with it
            return 0

    def abandon(self) -> None:
        """In a forked child: nothing here is ours."""
        if self._embedded is not None:
            self._embedded.abandon()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            if self._open():
                while not self._is_over():
                    self._turn()
        except (ConnectionFailed, ProtocolError) as error:
            self._break(error)
        except BaseException as error:
            self._break(LfmError(f"the session broke: {type(error).__name__}: {error}; this is a defect of lfm"), error)
        finally:
            self._end()

    def _open(self) -> bool:
        """False: nobody wants it any more."""
        self._poller = zmq.Poller()
        self._poller.register(self._wake_out, zmq.POLLIN)
        if self._embedded is not None:
            if not self._embedded.wait_published(self._is_over):
                return False
            self._run_name = self._dialer.connect(CONNECT_TIMEOUT).run
        self._dialer.register(self._poller)
        return True

    def _is_over(self) -> bool:
        return self._closing and (self._leaving or not (self._outbox or self._calls or self._questions))

    def _turn(self) -> None:
        """Hear, say, sleep until there is something to do."""
        if self._is_short():
            time.sleep(SHORT_PAUSE)
            self._dialer.deaf()
            self._spoken = True
            self._look_around()
            return
        for message in self._dialer.receive() if self._spoken else ():
            if type(message) is not m.EnvironmentProgress:
                terminal.clear()  # what comes of it may write there
            self._hear(message)
        self._drain()
        self._dialer.flush()
        self._asleep = self._spoken = True
        if (not self._outbox or self._dialer.waiting >= ON_THE_WAY or self._doubtful()) and not self._is_over():
            ready = self._poller.poll(self._patience())
            self._asleep = False
            for one, _ in ready:
                if one == self._wake_out:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
            self._spoken = time.monotonic() >= self._due or any(one != self._wake_out for one, _ in ready)
            self._ended_processes = any(one in self._watched for one, _ in ready)
        self._asleep = False
        if self._ended_processes or self._dialer.lost_since is not None or time.monotonic() >= self._due:
            self._look_around()

    def _is_short(self) -> bool:
        """Whether there is no memory for what may come; said once."""
        before, self._short = self._short, self._headroom.lacks()
        if self._short and not before:
            self._warn("this process is short of memory: results wait until it has some (see: ulimit -v)", UserWarning)
        return self._short

    def _patience(self) -> int:
        """Milliseconds until something is due."""
        due = min(self._dialer.deadline(), self._news.deadline(), self._incoming.deadline())
        if self._release_at is not None:
            due = min(due, self._release_at)
        if self._embedded is not None:
            watches = set(self._embedded.watches)
            for gone in self._watched - watches:
                self._poller.unregister(gone)
            for new in watches - self._watched:
                self._poller.register(new, zmq.POLLIN)
            self._watched = watches
            if not watches:
                due = min(due, time.monotonic() + CHECK_EVERY)
        self._due = due
        return max(0, int((due - time.monotonic()) * 1000) + 1)

    def _look_around(self) -> None:
        """Time has passed: keep the link alive, and see whether there is still a manager."""
        if time.monotonic() >= self._dialer.deadline():
            self._dialer.tick()
        if (now := time.monotonic()) >= self._news.deadline():
            self._news.look(now)
        if now >= self._incoming.deadline():
            self._incoming.retry()
        if self._embedded is not None:
            if (self._ended_processes or not self._watched) and (reason := self._embedded.failure()) is not None:
                raise ConnectionFailed(reason)
        elif (since := self._dialer.lost_since) is None:
            self._warned_lost = False
        else:
            self._lost(time.monotonic() - since)

    def _lost(self, silent: float) -> None:
        if silent < BLIP:
            return
        if not self._warned_lost:
            self._warned_lost = True
            self._warn(f"no word from the manager for {silent:.0f} s; trying to reach it again", UserWarning)
        gone = True
        with contextlib.suppress(ConnectionFailed):
            self._connection()
            gone = False
        if silent > (GONE_PATIENCE if gone else PATIENCE):
            raise ConnectionFailed(f"the manager was not heard of for {silent:.0f} s; is it running? see: lfm manager info")

    # ---------------------------------------------------------------- saying

    def _drain(self) -> None:
        outbox = self._outbox
        if self._calls.unreleased and (self._calls.unreleased >= RELEASE_MANY or self._release_due()):
            self._calls.release()
            self._release_at = None
        while outbox and self._dialer.waiting < ON_THE_WAY:
            match word := outbox[0]:
                case Future() if self._doubtful():
                    break
                case Future():
                    self._calls.send(word)
                case _Withdraw(future):
                    self._calls.withdraw(future)
                case _Stop(future):
                    self._calls.stop(future)
                case _Taken(task):
                    self._calls.taken(task)
                case Repair():
                    self._repaired(word)
                case _:
                    self._dialer.send(word)
            outbox.popleft()  # only now: close() looks for calls here and among those that were sent

    def _doubtful(self) -> bool:
        """Whether what is to be said next may not leave yet; all the rest waits behind it, and not for long."""
        word = self._outbox[0]
        return isinstance(word, Future) and (submit := word._submit) is not None and self._outgoing.doubtful(submit.function)

    def _release_due(self) -> bool:
        if self._release_at is None:
            self._release_at = time.monotonic() + RELEASE_AFTER
        return time.monotonic() >= self._release_at

    def _repaired(self, repair: Repair) -> None:
        if repair.better is not None:
            name, module = repair.better.function.name, repair.module
            self._warn(
                f"{name} needs {module!r}, which its code does not show; its environment is made again with it; "
                f"@lfm.task(imports=[{module!r}]) says so at once", UserWarning,
            )  # fmt: skip
        self._calls.again(repair)

    # ---------------------------------------------------------------- hearing

    def _hear(self, message: m.Message) -> None:
        match message:
            case m.Finished():
                self._calls.finished(message)
            case m.Started():
                self._calls.started(message)
            case m.FetchBlob() | m.BlobChunk() | m.BlobMissing():
                self._incoming.hear(message)
                if isinstance(message, m.FetchBlob) and (key := self._makings.serves(message.digest)) is not None:
                    self._news.sent(key, message.offset + message.length)
            case m.Capacity():
                self.capacity = message
            case m.Yours():
                self._adopt(message)
            case m.SessionTaken(host, pid):
                raise ConnectionFailed(f"session {self._called!r} is now that of process {pid} on {host}; its futures are there")
            case m.EnvironmentProgress():
                if self._outgoing.declares(message.key):
                    self._news.hear(message)
                self._makings.hear(message)
            case m.MakeEnvironment(key):
                self._makings.make(key)
            case m.Notice():
                self._notice(message)
            case m.Answer():
                if (question := self._questions.get(message.number)) is not None:
                    with contextlib.suppress(InvalidStateError):
                        question.set_result(message.body)
            case m.Welcome():
                if not message.resumed:
                    self._calls.say_all_again()
            case _:
                raise ProtocolError(f"the manager said {type(message).__name__} to a client")

    def _adopt(self, yours: m.Yours) -> None:
        future: Future[Any] = Future()
        future._id, future._name, future._environment, future._owner = yours.task, yours.name, yours.environment, self
        who = yours.task.rpartition("-")[0]
        if who != self.name:
            self._others.setdefault(who, len(self._others))
        self._calls.yours(future)

    def _notice(self, notice: m.Notice) -> None:
        if notice.level != "warning":
            if sys.stderr.isatty():
                print(f"lfm: {notice.text}", file=sys.stderr)
            return
        trouble = self._warn(notice.text, Unschedulable if "largest worker" in notice.text else UserWarning)
        if trouble is not None:  # warnings are errors here: then these calls fail by it
            for task in notice.tasks:
                self._calls.fail(task, trouble)

    @staticmethod
    def _warn(text: str, kind: type[Warning]) -> Warning | None:
        terminal.clear()
        try:
            warnings.warn_explicit(text, kind, "lfm", 0, module="lfm")  # no line of this thread tells the user anything
        except Warning as raised:
            return raised
        return None

    # ---------------------------------------------------------------- breaking and ending

    def _break(self, error: Exception, cause: BaseException | None = None) -> None:
        """No manager any more: everybody who waits is told."""
        with self._lock:
            self._broken = error
            self._closing = True
        def told() -> Exception:
            one = type(error)(str(error))
            one.__cause__ = cause
            return one

        self._give_up(told)
        for question in list(self._questions.values()):
            with contextlib.suppress(InvalidStateError):
                question.set_exception(told())

    def _give_up(self, error: Callable[[], Exception]) -> None:
        """Nobody here hears of the calls any more."""
        terminal.clear()
        while self._outbox:
            word = self._outbox.popleft()
            if isinstance(word, Future):
                with contextlib.suppress(InvalidStateError):
                    word.set_exception(error())
        self._calls.fail_all(error)

    def _end(self) -> None:
        terminal.clear()
        self._sum_up()
        self._incoming.close()
        self._makings.close()
        if self._broken is None:
            with contextlib.suppress(ConnectionFailed, ProtocolError):
                self._calls.release()
                self._dialer.flush()
            if self._leaving:
                again = f"lfm.Executor({self._run_name!r}, session={self._called!r}).futures()"
                self._give_up(lambda: ConnectionFailed(f"session {self._called!r} was left; to have it again: {again}"))
        self._dialer.close(goodbye=True)
        if self._embedded is not None:
            self._embedded.stop()
        self.spool.close()
        with self._lock:
            self._ended = True
            os.close(self._wake_in)
            os.close(self._wake_out)


    def _sum_up(self) -> None:
        """What the calls took, for whoever sits before it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no stderr, or not any more
            if wanted() and (text := self._calls.summary.table()):
                print(text, file=sys.stderr)


# -------------------------------------------------------------------- the interpreter's end, and forks


def _at_exit() -> None:
    """As in concurrent.futures: what was submitted is answered before the interpreter ends, unless it ends by Ctrl-C."""
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for session in list(_sessions):
        try:
            session.close(kill=interrupted)
        except KeyboardInterrupt:
            interrupted = True
            session.close(kill=True)


def _after_fork() -> None:
    for session in list(_sessions):
        session.abandon()
    _sessions.clear()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # before the interpreter joins our threads
os.register_at_fork(after_in_child=_after_fork)

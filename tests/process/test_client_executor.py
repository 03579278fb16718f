"""The executor against a manager that is none: what concurrent.futures promises, and what it does not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

import lfm
from lfm.errors import CallCancelled, CallKilled, ConnectionFailed, Unschedulable
from lfm.protocol import messages as m
from lfm.protocol import outcomes as o
from lfm.protocol.resources import Request
from lfm.testing import FakeManager, wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def fake():
    with FakeManager() as manager:
        yield manager


@pytest.fixture
def ex(fake):
    with lfm.Executor(fake.run) as executor:
        yield executor


def capture(*args, **kwargs):
    return args, kwargs


def fail(text):
    raise KeyError(text)


class Unpicklable:
    def __reduce__(self):
        raise pickle.PicklingError("I stay here")


class UnpicklesWrongly:
    def __reduce__(self):
        return int, ("not a number",)


# ------------------------------------------------------------ concurrent.futures


def test_submit_and_map(ex):
    assert ex.submit(pow, 2, 8).result() == 256
    assert ex.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    assert list(ex.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(ex.map(pow, range(40), range(40), chunksize=6)) == list(map(pow, range(40), range(40)))
    with pytest.raises(TypeError):
        ex.submit(fn=capture, arg=1)
    with pytest.raises(TypeError):
        ex.submit(arg=1)


def test_it_is_the_real_thing(ex):
    assert isinstance(ex, concurrent.futures.Executor)
    future = ex.submit(pow, 2, 3)
    assert isinstance(future, concurrent.futures.Future) and isinstance(future, lfm.Future)
    assert concurrent.futures.wait([future]).done == {future}
    assert list(concurrent.futures.as_completed([future])) == [future]


def test_map_is_submitted_before_it_is_asked_for(ex, fake):
    fake.hold()
    values = ex.map(pow, [2, 3], [2, 2])
    fake.wait_submitted(2)
    fake.let_go()
    assert list(values) == [4, 9]


def test_map_raises_where_the_call_did(ex):
    values = ex.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(values), next(values)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_map_times_out(ex, fake):
    fake.hold()
    values = ex.map(pow, [2], [2], timeout=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(values)
    fake.let_go()


def test_map_refuses_a_chunksize_below_one(ex):
    with pytest.raises(ValueError, match="chunksize"):
        ex.map(pow, [2], [2], chunksize=0)


def test_wrong_sizes_are_refused(fake):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        lfm.Executor(workers=0)
    with pytest.raises(TypeError, match="a running one was named"):
        lfm.Executor(fake.run, cores=2)


def test_nothing_after_shutdown(fake):
    executor = lfm.Executor(fake.run)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 5)


def test_shutdown_waits_for_what_was_submitted(fake):
    executor = lfm.Executor(fake.run)
    futures = [executor.submit(time.sleep, 0.05) for _ in range(4)]
    executor.shutdown(wait=True)
    assert all(f.done() and not f.cancelled() for f in futures)


def test_shutdown_without_waiting(fake):
    fake.hold()
    executor = lfm.Executor(fake.run)
    futures = [executor.submit(abs, n) for n in (-1, -2)]
    executor.shutdown(wait=False)
    assert not any(f.done() for f in futures)
    fake.let_go()
    assert [f.result() for f in futures] == [1, 2]


def test_shutdown_cancels_what_has_not_started(fake):
    fake.hold()
    executor = lfm.Executor(fake.run)
    futures = [executor.submit(abs, n) for n in range(10)]
    first, *_ = fake.wait_submitted(10)
    fake.start(first)
    wait_until(futures[0].running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in futures[1:]) and not futures[0].cancelled()
    fake.end(first, o.Returned(o.Inline(b"".join(lfm_payload(7)))))
    executor.shutdown(wait=True)
    assert futures[0].result() == 7


def lfm_payload(value):
    from lfm.monitor.payload import pack

    return pack(value)


def test_an_executor_that_nobody_holds_answers_and_ends(fake):
    executor = lfm.Executor(fake.run)
    session = executor._session
    fake.hold()
    future = executor.submit(abs, -5)
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    fake.let_go()
    assert future.result() == 5
    wait_until(lambda: not session._thread.is_alive())


def test_arguments_and_results_are_let_go(ex):
    class Thing:
        pass

    class Caller:
        def __call__(self, thing):
            return None

    thing, caller = Thing(), Caller()
    gone = [weakref.ref(thing), weakref.ref(caller)]
    future = ex.submit(caller, thing)
    del thing, caller
    future.result()
    assert wait_until(lambda: gc.collect() >= 0 and all(ref() is None for ref in gone))
    for value in ex.map(Thing_like, range(4)):
        ref = weakref.ref(value)
        del value
        assert wait_until(lambda ref=ref: ref() is None)


class Thing_like:
    def __init__(self, number):
        self.number = number


def test_no_cycle_keeps_an_exception_alive(ex):
    future = ex.submit(fail, "x")
    with pytest.raises(KeyError):
        future.result()
    ref = weakref.ref(future)
    gc.disable()
    try:
        del future
        wait_until(lambda: ref() is None)
    finally:
        gc.enable()


# ------------------------------------------------------------ cancelling and killing


def test_cancel_before_it_starts(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    (task,) = fake.wait_submitted(1)
    seen = []
    future.add_done_callback(seen.append)
    assert future.cancel() and future.cancelled() and future.cancel()
    assert seen == [future]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert concurrent.futures.wait([future], timeout=1).done == {future}
    wait_until(lambda: m.Kill((task,)) in fake.heard)
    wait_until(lambda: any(isinstance(w, m.Release) and task in w.tasks for w in fake.heard))


def test_cancel_after_it_started(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    (task,) = fake.wait_submitted(1)
    fake.start(task)
    wait_until(future.running)
    assert not future.cancel() and future.state == "running"
    fake.let_go()
    assert future.result() == 1 and not future.cancel()


def test_a_late_result_of_a_cancelled_call_is_dropped(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    (task,) = fake.wait_submitted(1)
    submit = fake.submitted.pop(task)
    assert submit.task == task and future.cancel()
    fake.end(task, o.Returned(o.Inline(b"".join(lfm_payload(1)))))
    wait_until(lambda: any(isinstance(w, m.Release) and task in w.tasks for w in fake.heard))
    assert future.cancelled()
    fake.let_go()


def test_a_cancelled_call_that_was_never_sent_stays_here(ex, fake):
    fake.hold()
    futures = [ex.submit(abs, n) for n in range(500)]
    assert all(f.cancel() for f in futures)
    fake.let_go()
    assert ex.submit(abs, -1).result() == 1


def test_kill(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    (task,) = fake.wait_submitted(1)
    fake.start(task)
    wait_until(future.running)
    assert future.kill()
    with pytest.raises(CallKilled, match="abs was killed"):
        future.result()
    assert not future.kill() and future.state == "failed"


def test_cancelled_by_somebody_else(ex, fake):
    fake.hold()
    waiting, running = ex.submit(abs, -1), ex.submit(abs, -2)
    first, second = fake.wait_submitted(2)
    fake.start(second)
    wait_until(running.running)
    fake.end(first, o.Cancelled())
    fake.end(second, o.Cancelled())
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    with pytest.raises(CallCancelled):
        running.result()
    assert waiting.cancelled()
    fake.let_go()


# ------------------------------------------------------------ errors


def test_what_cannot_be_pickled_is_the_futures_error(ex):
    future = ex.submit(abs, Unpicklable())
    with pytest.raises(pickle.PicklingError, match="I stay here"):
        future.result()
    assert future.state == "failed" and "never sent" in future.explain()
    with pytest.raises((pickle.PicklingError, TypeError, AttributeError)):
        ex.submit(abs, threading.Lock()).result()
    assert ex.submit(abs, -1).result() == 1


def test_an_executor_cannot_be_sent(ex):
    with pytest.raises(TypeError, match="an executor cannot be sent to a call"):
        ex.submit(repr, ex).result()
    with pytest.raises(TypeError, match="an executor cannot be sent to a call"):
        ex.submit(lambda: ex._max_workers).result()


def test_the_functions_own_exception(ex):
    future = ex.submit(fail, "x")
    with pytest.raises(KeyError) as raised:
        future.result()
    assert raised.value.args == ("x",) and "in fail" in str(raised.value.__cause__)
    assert future.exception() is raised.value
    done, _ = concurrent.futures.wait([future], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert done == {future}


def test_a_value_that_cannot_be_read_here(ex):
    future = ex.submit(UnpicklesWrongly)
    assert isinstance(future.exception(), lfm.RemoteError)
    with pytest.raises(lfm.RemoteError, match="gave a value that cannot be read here: ValueError"):
        future.result()


def test_a_value_that_cannot_be_sent(ex):
    with pytest.raises((TypeError, pickle.PicklingError)):
        ex.submit(threading.Lock).result()


def test_base_exceptions_travel(ex):
    with pytest.raises(SystemExit) as left:
        ex.submit(sys.exit, 3).result()
    assert left.value.code == 3


def test_an_unknown_option(ex):
    with pytest.raises(TypeError, match="did you mean 'memory'"):
        ex.options(memry="1GB")


def test_no_manager(tmp_path):
    with pytest.raises(ConnectionFailed):
        lfm.Executor(tmp_path)
    with pytest.raises(ConnectionFailed, match="no run named"):
        lfm.Executor("surely-not-there")


# ------------------------------------------------------------ options, views, chunks


def test_options_ride_with_the_call(ex, fake):
    @lfm.task(memory="1GB", cores=2, category="tuned")
    def tuned(x):
        return x

    view = ex.options(memory="2GB", retries=3, priority=1.5)
    assert view.submit(tuned, 1).result() == 1
    (said,) = [w for w in fake.heard if isinstance(w, m.Submit)]
    assert said.request == Request(cores=2.0, memory=2 * 10**9)
    assert (said.retries, said.priority) == (3, 1.5)
    (declared,) = [w for w in fake.heard if isinstance(w, m.DeclareFunction)]
    assert declared.category == "tuned"


def test_a_view_ends_alone(ex):
    with ex.options(cores=1) as view:
        future = view.submit(time.sleep, 0.05)
    assert future.done()
    with pytest.raises(RuntimeError):
        view.submit(abs, 1)
    with pytest.raises(RuntimeError):
        list(view.map(abs, [1, 2], chunksize=2))
    assert ex.submit(abs, -1).result() == 1


def test_a_view_of_a_view(ex, fake):
    ex.options(memory="1GB").options(cores=2).submit(abs, 1).result()
    (said,) = [w for w in fake.heard if isinstance(w, m.Submit)]
    assert said.request == Request(cores=2.0, memory=10**9)


def test_a_chunk_is_one_call(ex, fake):
    assert list(ex.map(pow, range(7), range(7), chunksize=3)) == [pow(n, n) for n in range(7)]
    assert [w.chunk for w in fake.heard if isinstance(w, m.Submit)] == [3, 3, 1]


def test_function_and_environment_are_declared_once(ex, fake):
    list(ex.map(abs, range(20)))
    kinds = [type(w) for w in fake.heard]
    assert kinds.count(m.DeclareEnvironment) == 1 and kinds.count(m.DeclareFunction) == 1
    assert kinds.index(m.DeclareEnvironment) < kinds.index(m.DeclareFunction) < kinds.index(m.Submit)


# ------------------------------------------------------------ large things


def test_large_arguments_and_results(ex, fake):
    data = os.urandom(3 << 20)
    assert ex.submit(bytes.__len__, data).result() == len(data)
    assert ex.submit(bytes, data).result() == data
    spooled = {w.arguments.digest for w in fake.heard if isinstance(w, m.Submit) and isinstance(w.arguments, o.Blob)}
    store = ex._session.spool.store
    assert spooled
    wait_until(lambda: not any(store.has(digest) for digest in spooled), "the arguments to be removed")


def test_large_arrays_come_writable_and_each_its_own(ex):
    np = pytest.importorskip("numpy")
    one, two = (ex.submit(np.zeros, 200_000) for _ in range(2))
    first, second = one.result(), two.result()
    first += 1
    assert first.sum() == 200_000 and second.sum() == 0 and one.result() is first


def test_a_handle_arrives_as_the_object(ex, fake):
    handle = ex.put(list(range(50_000)))
    assert [ex.submit(sum, handle).result(), ex.submit(len, handle).result()] == [sum(range(50_000)), 50_000]
    assert sum(isinstance(w, m.BlobChunk) for w in fake.heard) == 1
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(handle)


def test_the_spool_is_removed(fake):
    with lfm.Executor(fake.run) as executor:
        executor.put(b"x" * 100)
        place = executor._session.spool.store.directory
        assert place.is_dir()
    assert not place.parent.exists()


def test_many_small_arguments_do_not_fill_the_memory(ex, fake, monkeypatch):
    monkeypatch.setattr("lfm.spool.PATIENT_INLINE", 200_000)
    fake.hold()
    futures = [ex.submit(bytes.__len__, bytes(50_000)) for _ in range(10)]
    fake.wait_submitted(10)
    kinds = [type(s.arguments) for s in fake.submitted.values()]
    assert kinds.count(o.Inline) <= 4
    fake.let_go()
    assert [f.result() for f in futures] == [50_000] * 10


# ------------------------------------------------------------ what a future knows


def test_a_future_tells(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    assert (future.state, future.usage, future.allocation, future.attempts) == ("waiting", None, None, ())
    (task,) = fake.wait_submitted(1)
    assert future.id == task and "abs" in repr(future)
    fake.start(task)
    wait_until(future.running)
    assert future.allocation.memory == 10**6 and "on fake-worker" in repr(future)
    fake.end(task, o.Returned(o.Inline(b"".join(lfm_payload(1)))), stderr=b"warned\n")
    assert future.result() == 1 and future.state == "done"
    assert isinstance(future.usage, lfm.Usage) and len(future.attempts) == 1
    assert future.stderr == "warned\n" and future.stdout == ""
    assert len(future.environment) == 64
    fake.let_go()


def test_questions(ex, fake):
    fake.answers["status"] = {"manager": {"run": "fake"}, "workers": [], "calls": {"ready": 1}, "categories": [], "alerts": []}
    assert ex.status().calls == {"ready": 1} and ex.status().manager == {"run": "fake"}
    fake.answers["explain"] = {"text": "it waits for a worker"}
    fake.hold()
    future = ex.submit(abs, 1)
    assert future.explain() == "it waits for a worker"
    fake.let_go()
    future.result()
    assert future.explain().splitlines()[0] == "abs returned after 1 attempt"
    del fake.answers["status"]
    with pytest.raises(lfm.LfmError, match="no answer"):
        ex.status()


def test_await(ex):
    async def main():
        value = await ex.submit(abs, -3)
        others = await asyncio.gather(*(asyncio.wrap_future(ex.submit(abs, n)) for n in (-1, -2)))
        with pytest.raises(KeyError):
            await ex.submit(fail, "x")
        return value, others

    assert asyncio.run(main()) == (3, [1, 2])


def test_max_workers_is_true_and_grows(ex, fake):
    wait_until(lambda: ex._max_workers == 4)
    fake.tell(m.Capacity(3, 24.0, 10**10, 24))
    wait_until(lambda: ex._max_workers == 24)


def test_a_callback_may_submit_but_not_ask(ex, fake):
    box = []

    def then(future):
        box.append(ex.submit(abs, -future.result()))
        with pytest.raises(RuntimeError, match="callback"):
            ex.status()
        box.append("asked")

    fake.hold()  # what is over already calls back at once, and from here, where one may ask
    ex.submit(abs, -4).add_done_callback(then)
    fake.let_go()
    wait_until(lambda: len(box) == 2)
    assert box[0].result() == 4


def test_warnings_reach_the_person(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    (task,) = fake.wait_submitted(1)
    with pytest.warns(Unschedulable, match="largest worker has 1"):
        fake.tell(m.Notice("warning", "abs needs 9 cores; the largest worker has 1", (task,)))
        answered = ex.submit(abs, 1)
        fake.let_go()
        answered.result()
    assert future.result() == 1


def test_warnings_as_errors_fail_their_calls(ex, fake):
    fake.hold()
    future = ex.submit(abs, -1)
    (task,) = fake.wait_submitted(1)
    fake.tell(m.Notice("warning", "abs needs 9 cores; the largest worker has 1", (task,)))
    with pytest.raises(Unschedulable):
        future.result()
    fake.let_go()
    assert ex.submit(abs, -1).result() == 1


# ------------------------------------------------------------ many, threads, forks, exits


def test_many_from_many_threads(ex):
    results = []

    def work(base):
        results.append(sum(f.result() for f in [ex.submit(abs, -n) for n in range(base, base + 200)]))

    threads = [threading.Thread(target=work, args=(base,)) for base in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [sum(range(base, base + 200)) for base in (0, 1000, 2000)]


def script(fake, text, **more):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), str(fake.run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def test_an_interpreter_that_ends_waits_for_its_calls(fake):
    process = script(fake, """
        import sys, lfm
        ex = lfm.Executor(sys.argv[1])
        ex.submit(abs, -42).add_done_callback(lambda f: print(f.result(), flush=True))
    """)
    assert process.communicate(timeout=120) == ("42\n", "")
    assert process.returncode == 0


def test_a_forked_child_is_told(fake):
    process = script(fake, """
        import os, sys, lfm
        ex = lfm.Executor(sys.argv[1])
        assert ex.submit(abs, -1).result() == 1
        pid = os.fork()
        if pid == 0:
            try:
                ex.submit(abs, -1)
            except RuntimeError as error:
                print(error, flush=True)
            ex.shutdown()
            del ex
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert ex.submit(abs, -2).result() == 2
        ex.shutdown()
        print("parent", flush=True)
    """)
    out, err = process.communicate(timeout=120)
    assert "belongs to the process that forked" in out and out.endswith("parent\n"), err


def test_ctrl_c_ends_it_promptly(fake):
    fake.hold()
    process = script(fake, """
        import sys, lfm
        with lfm.Executor(sys.argv[1]) as ex:
            future = ex.submit(abs, -1)
            future.result()
    """)
    fake.wait_submitted(1)
    process.send_signal(2)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    assert err.count("Traceback") == 1


def test_ctrl_c_without_with(fake):
    fake.hold()
    process = script(fake, """
        import sys, lfm
        ex = lfm.Executor(sys.argv[1])
        ex.submit(abs, -1).result()
    """)
    fake.wait_submitted(1)
    process.send_signal(2)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "KeyboardInterrupt" in err

"""Every outcome is an exception of its own, that says in one line what to do, and travels."""

import pickle

import pytest

from lfm import errors
from lfm.blame import RemoteTraceback, Sealed, at_home, error_of
from lfm.monitor import payload
from lfm.options import Options
from lfm.protocol import outcomes as o
from lfm.protocol.messages import Finished
from lfm.protocol.resources import Resources


def finished(outcome, *, attempts=1, stderr=b""):
    tried = tuple(o.Attempt(n + 1, "w", "n0123", Resources(), None, 0.0, 1.0, "x") for n in range(attempts))
    return Finished("t-1", outcome, None, None, tried, b"", stderr)


def packed(obj):
    return b"".join(payload.pack(obj))



def strange():
    """Its payload; the class is found under no module when it is read again."""
    return packed(KeyError("x")).replace(b"KeyError", b"NoErrors")


def test_the_functions_own_exception_comes_unchanged_with_its_remote_traceback():
    raised = o.Raised(o.Inline(b""), "KeyError", "'x'", "Traceback: there\nKeyError: 'x'\n")
    error = error_of(finished(raised, stderr=b"first\nlast words\n"), "fit", packed(KeyError("x")))
    assert type(error) is KeyError and error.args == ("x",)
    assert isinstance(error.__cause__, RemoteTraceback) and "Traceback: there" in str(error.__cause__)
    notes = "\n".join(error.__notes__)
    assert "attempt 1, on n0123" in notes and "last words" in notes


def test_the_users_files_are_named_as_they_are_here():
    there = f"/scratch/a b/lfm-0/overlays/{'0' * 64}/"
    homes = {"src/pack/mine.py": "/home/me/pack/mine.py"}
    text = f'  File "{there}src/pack/mine.py", line 3, in f\n  File "{there}src/other.py", line 4 in g\n  File "/usr/x.py", line 1\n'
    here = f'  File "/home/me/pack/mine.py", line 3, in f\n  File "{there}src/other.py", line 4 in g\n  File "/usr/x.py", line 1\n'
    assert at_home(finished(o.Raised(None, "E", "e", text)), homes).outcome.traceback == here
    assert at_home(finished(o.Crashed(11, None, text)), homes).outcome.faulthandler == here
    assert at_home(finished(o.EnvironmentBroken("x", f"{there}src/pack/mine.py", 3, "")), homes).outcome.file == "/home/me/pack/mine.py"
    assert at_home(finished(o.Killed()), homes) == finished(o.Killed())


@pytest.mark.parametrize("data", [None, b"rubbish", strange(), packed(42)])
def test_an_exception_that_cannot_travel_is_a_remote_error(data):
    raised = o.Raised(None, "pkg.Strange", "a", "Traceback\n")
    error = error_of(finished(raised), "fit", data)
    assert isinstance(error, errors.RemoteError)
    assert (error.type_name, error.text, error.traceback) == ("pkg.Strange", "a", "Traceback\n")
    assert "fit: pkg.Strange: a" in str(error)


def test_what_failed_to_be_pickled_is_said():
    raised = o.Raised(None, "TypeError", "cannot pickle 'lock'", "", stage="dump")
    assert "sending its value" in str(error_of(finished(raised), "fit"))


@pytest.mark.parametrize(
    ("resource", "limit", "measured", "said", "hint"),
    [
        ("memory", 4e9, 4.2e9, "used more memory than its 4.0 GB in 2 attempts (measured 4.2 GB) on n0123", 'memory="8.0GB"'),
        ("disk", 1e9, 2e9, "used more disk than its 1.0 GB", 'disk="2.0GB"'),
        ("wall_time", 60.0, 61.0, "ran longer than its 60.0 s", 'wall_time="2m00s"'),
        ("processes", 8, 9, "had more processes than its 8", "processes=16"),
    ],
)
def test_exhausted(resource, limit, measured, said, hint):
    error = error_of(finished(o.Exhausted(resource, limit, measured, 3.0), attempts=2), "fit")
    assert isinstance(error, errors.ResourceExhausted)
    assert (error.resource, error.limit, error.measured, len(error.attempts)) == (resource, limit, measured, 2)
    assert said in str(error) and hint in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("resource", "limit"),
    [("memory", 1.5e9), ("disk", 123456.0), ("wall_time", 4000.0), ("wall_time", 0.25), ("wall_time", 90000.0)],
)
def test_the_hint_of_exhausted_can_be_typed(resource, limit):
    text = str(error_of(finished(o.Exhausted(resource, limit, limit, 1.0)), "fit"))
    name, _, value = text.rpartition("ex.options(")[2].rstrip(")").partition("=")
    said = value.strip('"') if value.startswith('"') else float(value)
    assert getattr(Options.parse({name: said}), name) == pytest.approx(2 * limit, rel=0.05)


def test_crashed():
    error = error_of(finished(o.Crashed(11, None, "Fatal Python error: here"), stderr=b"oh"), "fit")
    assert isinstance(error, errors.CallCrashed)
    assert "fit was killed by SIGSEGV on n0123" in str(error)
    assert (error.signal, error.exit_code, error.stderr) == (11, None, "oh")
    assert any("Fatal Python error" in note for note in error.__notes__)
    dump = 'Fatal Python error\n\nCurrent thread:\n  File "/x/a.py", line 3 in inner\n  File "/x/a.py", line 9 in outer\n'
    assert "in inner (/x/a.py:3); see error.faulthandler" in str(error_of(finished(o.Crashed(11, None, dump)), "fit"))
    assert "left with exit code 3" in str(error_of(finished(o.Crashed(None, 3)), "fit"))


def test_a_missing_module_says_how_to_add_it():
    error = error_of(finished(o.EnvironmentBroken("click.core", "/x/io.py", 7, "No module named 'click'")), "fit")
    assert isinstance(error, errors.EnvironmentFailed)
    assert (error.module, error.file, error.line) == ("click.core", "/x/io.py", 7)
    assert "imports=['click']" in str(error) and "/x/io.py:7" in str(error)


def test_a_module_that_is_missing_here_too_must_be_installed():
    error = error_of(finished(o.EnvironmentBroken("surely_absent", "", 0, "No module named 'surely_absent'")), "fit")
    assert "not installed here either" in error.hint and "imports=" not in str(error)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (o.Killed(), errors.CallKilled),
        (o.Lost("the node died"), errors.WorkerLost),
        (o.Impossible("lost", "3 nodes died"), errors.WorkerLost),
        (o.Impossible("environment", "no space left"), errors.EnvironmentFailed),
        (o.Impossible("something new", "why"), errors.CallError),
        (o.Cancelled(), errors.CallCancelled),
    ],
)
def test_all_others(outcome, kind):
    error = error_of(finished(outcome), "fit")
    assert isinstance(error, kind) and "fit" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)


def test_a_sealed_value_with_arrays_is_writable():
    np = pytest.importorskip("numpy")
    array = Sealed(packed(np.arange(4))).open()
    array += 1
    assert array.tolist() == [1, 2, 3, 4]

"""Functions and arguments as bytes, what was met on the way, and whether a function changed since."""

import collections
import dataclasses
import enum
import functools
import inspect
import linecache
import pickle
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lfm.function import state
from lfm.function.handle import Handle
from lfm.function.pack import Packer
from lfm.function.pickling import pickle_function, pickle_object
from lfm.function.task import options_of, task
from lfm.monitor import payload


def script(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "script.py", "exec"), names)
    return names


def back(pieces: list[Any], load: Any = None) -> Any:
    return payload.unpack(b"".join(pieces), load)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "value",
    [
        ((1, "x", None, 2.5, b"y", True), {"k": 1j}),
        (([1, {"a": (2, {3})}],), {}),
        ((re.compile("x"), collections.OrderedDict(a=1), range(3)), {}),
        [((1,), {}), ((2,), {"k": 3})],
    ],
)
def test_values_come_back(value: Any) -> None:
    assert back(pickle_object(value)[0]) == value


def test_atoms_meet_nothing_and_standard_types_are_named() -> None:
    assert pickle_object(((1, "x"), {}))[1] is None
    met = pickle_object(((collections.OrderedDict(),), {}))[1]
    assert met is not None and list(met.references) == [("collections", "OrderedDict")]


def test_what_lives_in_main_travels_by_value() -> None:
    names = script(
        "import dataclasses, enum\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "class Colour(enum.Enum):\n    RED = 1\n"
        "class Wrong(Exception):\n    def __init__(self, code):\n        super().__init__(code)\n        self.code = code\n"
        "def f(x):\n    return Point(x)\n"
    )
    pieces, met = pickle_object(((names["Point"](3), names["Colour"].RED, names["Wrong"](4), lambda: 5), {}))
    (point, colour, wrong, five), _ = back(pieces)
    assert (point.x, colour.name, wrong.code, five()) == (3, "RED", 4, 5)
    assert met is not None and "f" not in {f.__name__ for f in met.functions.values()}
    pieces, met = pickle_function(names["f"])
    assert back(pieces)(7).x == 7 and met.functions[id(names["f"])] is names["f"]


def test_large_buffers_are_not_copied() -> None:
    data = bytearray(1 << 20)
    pieces, _ = pickle_object(((pickle.PickleBuffer(data),), {}))
    views = [p for p in pieces if memoryview(p).nbytes == len(data)]
    assert len(views) == 1
    data[5] = 7
    assert memoryview(views[0])[5] == 7


def test_what_cannot_be_pickled_raises() -> None:
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle_object(((x for x in ()), {}))
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle_function(script("import threading\nlock = threading.Lock()\ndef f():\n    return lock\n")["f"])


def test_handles_become_persistent_references_and_are_reported() -> None:
    named = pickle_object(collections.OrderedDict(a=1))[1]
    one, two = Handle("ab" * 32, 10, named), Handle("cd" * 32, 20)
    found: list[Handle] = []
    packer = Packer()
    packed = packer.pack(len)
    _, pieces = packer.arguments(packed, ([one, two, one],), {"k": (lambda: 1)}, found)
    assert found == [one, two]
    args, kwargs = back(pieces, lambda reference: reference)
    assert args == ([("lfm-blob", "ab" * 32), ("lfm-blob", "cd" * 32), ("lfm-blob", "ab" * 32)],)
    assert kwargs["k"]() == 1
    met = pickle_object(((one,), {}))[1]
    assert met is not None and ("collections", "OrderedDict") in met.references
    with pytest.raises(pickle.PicklingError, match="only be sent as an argument"):
        cloudpickle.dumps(one)


# ---------------------------------------------------------------- functions


def test_functions_methods_partials_and_cached_ones_come_back() -> None:
    names = script(
        "import functools\n"
        "limit = 3\n"
        "def f(x, by=2):\n    return min(x * by, limit)\n"
        "class A:\n    def m(self, x):\n        return f(x)\n    @classmethod\n    def c(cls, x):\n        return f(x)\n"
        "@functools.lru_cache(maxsize=5, typed=True)\ndef cached(x):\n    return f(x)\n"
    )
    for function in (
        names["f"], names["A"]().m, names["A"].c, functools.partial(names["f"], by=1), names["cached"],
    ):  # fmt: skip
        assert back(pickle_function(function)[0])(1) == function(1)
    cached = back(pickle_function(names["cached"])[0])
    assert cached.cache_parameters() == {"maxsize": 5, "typed": True} and cached.__name__ == "cached"
    assert back(pickle_function(len)[0]) is len


def test_the_text_of_a_script_travels_with_its_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "script.py"
    file.write_text("def f(x):\n    return helper(x)\n\ndef helper(x):\n    raise ValueError(x)  # here\n")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    pieces, _ = pickle_function(names["f"])
    assert b"lfm." not in b"".join(pieces)  # it must be readable where lfm is not
    file.unlink()
    monkeypatch.setattr(linecache, "cache", {})
    f = back(pieces)
    assert inspect.getsource(f) == "def f(x):\n    return helper(x)\n"
    with pytest.raises(ValueError) as caught:
        f(1)
    assert "raise ValueError(x)  # here" in "".join(traceback.format_exception(caught.value))


def test_a_module_made_by_hand_travels_by_value() -> None:
    made = types.ModuleType("made_by_hand")
    sys.modules["made_by_hand"] = made
    try:
        exec(
            "class A:\n    x = 1\ndef f(x):\n    return g(x), A\ndef g(x):\n    return x + 1\n", made.__dict__
        )
        function, _ = pickle_function(made.f)
        argument, _ = pickle_object(((made.A(),), {}))
    finally:
        del sys.modules["made_by_hand"]
    assert back(function)(1)[0] == 2 and back(argument)[0][0].x == 1


def test_packing_an_unchanged_function_gives_the_same() -> None:
    packer = Packer()
    names = script("big = bytearray(1 << 20)\ndef f(x):\n    return big[x]\n")
    packed = packer.pack(names["f"])
    assert packer.pack(names["f"]) is packed and packed.name == packed.category == "f"
    assert packer.pack(names["f"], imports=["json"]) is not packed
    names["big"] = bytearray(1 << 20)  # as large, but another
    assert packer.pack(names["f"]) is not packed


def test_nothing_packed_is_kept_alive() -> None:
    import gc
    import weakref

    class Big(bytearray):
        pass

    packer = Packer()
    names = script("def make(big):\n    def f(x):\n        return pickle_buffer, big\n    return f\n")
    big = Big(1 << 20)
    names["pickle_buffer"] = None
    function = names["make"](big)
    gone, freed = weakref.ref(function), weakref.ref(big)
    packed = packer.pack(function)
    grown, _ = packer.arguments(
        packed, (Path("x"), script("import json\ndef g():\n    return json\n")["g"]), {}
    )
    del function, big, packed, grown
    gc.collect()
    assert gone() is None and freed() is None and not packer._entries


# ---------------------------------------------------------------- state


@dataclasses.dataclass
class Settings:
    depth: int = 1


class Mood(enum.Enum):
    GOOD = 1


def test_a_token_notices_what_a_pickle_would_hold() -> None:
    names = script(
        "import math\ndef g():\n    return 1\ndef f(a=[1], *, b=2):\n    return x, math.pi, g(), [y for y in z]\n"
    )
    f = names["f"]

    def told() -> Any:
        return state.token(f)

    names |= {"x": Settings(), "z": {1: [2, (3, {4})]}}
    for change in (
        lambda: names["x"].__dict__.update(depth=2),
        lambda: names["z"][1].append(5),
        lambda: f.__defaults__[0].append(2),
        lambda: f.__kwdefaults__.update(b=3),
        lambda: names.update(z=bytearray(b"abc")),
        lambda: names["z"].append(1),
        lambda: names.update(x=Mood.GOOD),
        lambda: names.update(x=1),
        lambda: names.update(x=1.0),
        lambda: names.update(x=True),
        lambda: setattr(f, "__code__", (lambda a, *, b: 1).__code__),
    ):
        before = told()
        assert told() == before
        change()
        assert told() != before


def test_a_token_costs_little_whatever_the_function_holds() -> None:
    names = script("def f():\n    return big, deep\n")
    deep: list[Any] = []
    deep.append(deep)
    names |= {"big": list(range(10**6)), "deep": deep}
    teller = state._Teller()
    teller.callable(names["f"])
    assert teller.left > 0
    assert state.token(names["f"]) == state.token(names["f"])


# ---------------------------------------------------------------- options


def test_a_task_is_still_the_function() -> None:
    def f(x: int) -> int:
        return x + 1

    same = task(memory="2GB", imports=["pyarrow"])(f)
    assert same is f and f(1) == 2
    assert options_of(f) == {"memory": "2GB", "imports": ["pyarrow"]}
    assert task(f) is f
    task(cores=2)(f)
    assert options_of(functools.partial(f, 1)) == {"memory": "2GB", "imports": ["pyarrow"], "cores": 2}

    class A:
        @task(cores=3)
        def m(self) -> None: ...

    assert options_of(A().m) == {"cores": 3}
    for wrong in ({"memroy": 1}, {"memory": "much"}):
        with pytest.raises((TypeError, ValueError)):
            task(**wrong)
    with pytest.raises(TypeError, match="takes a function"):
        task(3)  # type: ignore[call-overload]

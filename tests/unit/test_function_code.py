"""What is read out of code objects: the same for every Python that we run on."""

import textwrap

import pytest

from lfm.function.code import Source, read_function, read_module


def module(text: str) -> Source:
    return read_module(compile(textwrap.dedent(text), "m.py", "exec"))


def top(text: str) -> list[tuple[str, str]]:
    return [(statement.module, statement.guard) for statement in module(text).top.imports]


def test_imports_and_what_they_bind() -> None:
    source = module(
        """
        import a.b.c
        import d.e as f
        import g, h as i
        from j.k import l, m as n
        from . import o
        from ..p import q
        import r.s.t as u
        after = 1
        """
    )
    bound = {
        name: (t.source.module, t.source.level, t.attribute, t.whole) for name, t in source.top.bound.items()
    }
    assert bound == {
        "a": ("a.b.c", 0, "", False), "f": ("d.e", 0, "", True), "g": ("g", 0, "", True), "i": ("h", 0, "", True),
        "l": ("j.k", 0, "l", True), "n": ("j.k", 0, "m", True), "o": ("", 1, "o", True), "q": ("p", 2, "q", True),
        "u": ("r.s.t", 0, "", True),
    }  # fmt: skip
    assert [s.line for s in source.top.imports] == [2, 3, 4, 4, 5, 6, 7, 8]


def test_names_and_attributes_of_a_function() -> None:
    def f(x):  # type: ignore[no-untyped-def]
        import numpy as np
        from scipy import optimize as opt
        from scipy import stats

        def g(y):  # type: ignore[no-untyped-def]
            return np.linalg.norm(y) + json.decoder.x  # noqa: F821

        return g(x), stats.norm.pdf, opt, x.to_parquet, [np.fft for _ in x]

    unit = read_function(f.__code__)
    assert ("json", "decoder", "x") in unit.chains
    used = {(t.source.module, t.attribute, *rest) for t, rest, _ in unit.uses}
    assert {("numpy", "", "linalg", "norm"), ("scipy", "stats", "norm", "pdf"), ("scipy", "optimize"),
            ("numpy", "", "fft")} <= used  # fmt: skip
    assert "to_parquet" in unit.attributes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("try:\n  import a\nexcept ImportError:\n  import b", [("a", "try"), ("b", "branch")]),
        ("try:\n  import a\nexcept (ValueError, ModuleNotFoundError):\n  pass", [("a", "try")]),
        ("try:\n  import a\nexcept:\n  pass", [("a", "try")]),
        ("try:\n  import a\nexcept ValueError:\n  pass\nexcept Exception as e:\n  print(e)", [("a", "try")]),
        ("try:\n  import a\nexcept ValueError:\n  pass", [("a", "")]),
        ("try:\n  import a\nfinally:\n  print()", [("a", "")]),
        ("from contextlib import suppress\nwith suppress(ImportError):\n  import a", [("contextlib", ""), ("a", "try")]),
        ("with open('x'):\n  import a", [("a", "")]),
        ("if x:\n  import a\nelse:\n  import b\nimport c", [("a", "branch"), ("b", ""), ("c", "")]),
        ("for i in x:\n  import a", [("a", "")]),
        ("import typing\nif typing.TYPE_CHECKING:\n  import a\nelse:\n  import b", [("typing", ""), ("b", "")]),
        ("if not TYPE_CHECKING:\n  import a", [("a", "")]),
        ("import sys\nif sys.version_info >= (3, 8):\n  import a\nelse:\n  import b\nimport c",
         [("sys", ""), ("a", ""), ("c", "")]),
        ("import sys\nif sys.version_info < (3, 8):\n  import a\nelif sys.platform == 'none':\n  import b\nelse:\n  import c",
         [("sys", ""), ("c", "")]),
        ("if __name__ == '__main__':\n  import a", []),
    ],
)  # fmt: skip
def test_what_may_fail_and_what_never_runs(text: str, found: list[tuple[str, str]]) -> None:
    seen = sorted(top(text))  # a handler's code may lie at the end
    assert [name for name, _ in seen] == [name for name, _ in sorted(found)]
    # Where a handler or an else lies tells little about whether it runs; what comes first tells all.
    assert [guard for name, guard in seen if name != "b"] == [
        guard for name, guard in sorted(found) if name != "b"
    ]


def test_a_module_by_what_it_defines() -> None:
    source = module(
        """
        import a, b
        limit = a.limit
        class Base(a.Base, metaclass=b.Meta):
            field = b.make()
            def method(self):
                return a.inside
            class Inner:
                def deep(self):
                    return b.inside
        @a.decorated(1)
        def f(x=b.default):
            return a.f
        def g():
            def h():
                return a.h
            return h
        square = lambda x: a.square(x)
        """
    )
    assert set(source.units) == {"Base", "f", "g"}
    assert set(source.units["Base"].chains) == {
        ("a", "Base"),
        ("b", "Meta"),
        ("a", "inside"),
        ("b", "inside"),
    }
    assert set(source.units["f"].chains) == {("a", "f")} and set(source.units["g"].chains) == {("a", "h")}
    tops = {chain for chain in source.top.chains if chain[0] in "ab"}
    assert tops == {("a", "limit"), ("b", "make"), ("a", "decorated"), ("b", "default"), ("a", "square")}
    assert "f" in source.passed and "g" not in source.passed


def test_long_code_with_extended_arguments() -> None:
    lines = "".join(f"import m{i}\nx{i} = m{i}.y{i}.z\n" for i in range(400))
    source = module(f"try:\n{textwrap.indent(lines, '  ')}\nexcept ImportError:\n  pass\n")
    assert len(source.top.imports) == 400 and {s.guard for s in source.top.imports} == {"try"}
    assert ("m399", "y399", "z") in source.top.chains

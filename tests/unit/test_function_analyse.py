"""What a function needs, over installed distributions and modules of the user's own made for each test."""

import base64
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.errors import AnalysisError
from lfm.function.optional import asks_to_install
from lfm.function.pack import Packed, Packer


class World:
    """A site-packages folder and a project folder, both on the path."""

    def __init__(self, root: Path) -> None:
        self.site, self.project = root / "site-packages", root / "project"
        self.hidden: dict[str, types.ModuleType] = {}  # real ones that other tests have imported
        self.site.mkdir()
        self.project.mkdir()

    def install(
        self, name: str, files: dict[str, str] | None = None, *, version: str = "1.0", requires: tuple[str, ...] = (),
        record: bool = True, site: Path | None = None, **notes: str,
    ) -> Path:  # fmt: skip
        """A distribution with these files; ``notes`` are further files of its metadata, "." written "__"."""
        site = site or self.site
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        header += "".join(f"Requires-Dist: {line}\n" for line in requires)
        contents = {f"{name.replace('-', '_')}/__init__.py": ""} if files is None else dict(files)
        tops = {path.split("/")[0].removesuffix(".py") for path in contents}
        for module in [module for module in sys.modules if module.split(".")[0] in tops]:
            if str(self.site.parent) not in (getattr(sys.modules[module], "__file__", None) or ""):
                self.hidden[module] = sys.modules.pop(module)
        contents[f"{info}/METADATA"] = header + "\nA description.\n"
        contents |= {f"{info}/{note.replace('__', '.')}": text for note, text in notes.items()}
        lines = []
        for path, text in contents.items():
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(textwrap.dedent(text))
            data = target.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(data)}\n")
        if record:
            (site / info / "RECORD").write_text("".join(lines) + f"{info}/RECORD,,\n")
        return site / info

    def write(self, files: dict[str, str], root: Path | None = None) -> None:
        for path, text in files.items():
            target = (root or self.project) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(textwrap.dedent(text))

    def module(self, name: str, **files: str) -> types.ModuleType:
        importlib.invalidate_caches()
        return importlib.import_module(name)

    def main(self, text: str) -> dict[str, Any]:
        """The globals of a script."""
        names: dict[str, Any] = {"__name__": "__main__", "__package__": None}
        path = self.project / "script.py"
        path.write_text(textwrap.dedent(text))
        exec(compile(path.read_text(), str(path), "exec"), names)
        return names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LFM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(made.project), str(made.site), *sys.path])
    yield made
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if not file or str(tmp_path) in file:
            del sys.modules[name]
    sys.modules.update(made.hidden)


def needs(packed: Packed) -> set[str]:
    return {one.name for one in packed.plan.distributions}


def why(packed: Packed) -> dict[str, str]:
    return {one.name: one.why for one in packed.plan.distributions}


def overlay(packed: Packed) -> dict[str, bytes]:
    assert packed.overlay is not None
    with tarfile.open(fileobj=io.BytesIO(packed.overlay)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def sources(packed: Packed) -> set[str]:
    return {name.removeprefix("src/") for name in overlay(packed) if name.startswith("src/")}


# ---------------------------------------------------------------- a script's own functions


def test_imports_in_the_body_and_names_of_the_script(world: World) -> None:
    for name in ("alpha", "beta", "gamma"):
        world.install(name)
    names = world.main(
        """
        import alpha
        import beta as b
        import gamma

        def one(x):
            return alpha.f(x)

        def two(x):
            return helper(x)

        def helper(x):
            return b.f(x)

        def three(x):
            import gamma.inner
        """
    )
    packer = Packer()
    assert needs(packer.pack(names["one"])) == {"alpha"}
    two = packer.pack(names["two"])
    assert why(two) == {"beta": "imported by helper (script.py:13)"}
    assert two.preload == two.plan.verify == ("beta",)
    with pytest.raises(KeyError):
        names["four"]


def test_closures_defaults_decorators_partials_methods_and_objects(world: World) -> None:
    for name in ("alpha", "beta", "gamma", "delta", "epsilon"):
        world.install(name)
    names = world.main(
        """
        import functools
        import alpha, beta, gamma, delta, epsilon

        def timed(f):
            @functools.wraps(f)
            def wrapper(*args):
                epsilon.now()
                return f(*args)
            return wrapper

        @timed
        def decorated(x):
            return alpha.f(x)

        def outer():
            unused = beta
            def inner(x, how=lambda y: delta.g(y)):
                return beta.f(how(x))
            return inner

        inner = outer()
        part = functools.partial(decorated, 1)

        class Base:
            def more(self):
                return gamma.f()

        class Thing(Base):
            def __call__(self, x):
                return self.more()
            def method(self, x):
                return alpha.f(x)
        """
    )
    packer = Packer()
    assert needs(packer.pack(names["decorated"])) == {"alpha", "epsilon"}
    assert needs(packer.pack(names["part"])) == {"alpha", "epsilon"}
    assert needs(packer.pack(names["inner"])) == {"beta", "delta"}
    assert needs(packer.pack(names["Thing"]())) == {"alpha", "gamma"}  # the class travels whole
    assert needs(packer.pack(names["Thing"]().method)) == {"alpha", "gamma"}
    assert needs(packer.pack(lambda x: names["part"](x)))  # a lambda over a dictionary with everything


def test_an_instance_of_a_library_among_the_globals(world: World) -> None:
    world.install("alpha", {"alpha/__init__.py": "", "alpha/_core.py": "class Model:\n    pass\n"})
    names = world.main(
        """
        from alpha._core import Model
        model = Model()
        def predict(x):
            return model
        """
    )
    assert why(Packer().pack(names["predict"])) == {"alpha": "used by predict"}


def test_nothing_is_executed(world: World) -> None:
    world.install("alpha", {"alpha/__init__.py": "raise SystemError('imported')"})
    names = world.main(
        """
        ran = []
        def f(x):
            ran.append(x)
            import alpha
            raise SystemError
        """
    )
    assert needs(Packer().pack(names["f"])) == {"alpha"}
    assert names["ran"] == [] and "alpha" not in sys.modules


DEEDS = (
    "hit()", "import alpha", "from alpha import hit as other; other()", "thing.attribute", "thing(hit())", "thing[hit()] += 1",
    "del thing.attribute", "[hit() for _ in range(3)]", "lambda: hit()", "assert hit()", "raise Trap(hit())",
    "with thing: hit()", "exec('hit()')", "__import__('alpha').hit()", "importlib.import_module('alpha')",
)  # fmt: skip
BLOCKS = (
    "{0}", "if hit():\n    {0}", "try:\n    {0}\nexcept Trap:\n    {1}\nfinally:\n    {2}", "for _ in thing:\n    {0}",
    "class Inner(Trap):\n    {0}\n    def method(self):\n        {1}", "def inner(a):\n    {0}\n    {1}\ninner(hit())",
    "@decorated\ndef inner():\n    {0}", "match thing:\n    case Trap():\n        {0}\n    case _:\n        {1}",
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from(DEEDS), st.sampled_from(DEEDS), st.sampled_from(DEEDS)), min_size=1, max_size=4))
@settings(max_examples=40)
def test_whatever_a_function_does_looking_at_it_does_nothing(world: World, body: list[tuple[str, ...]]) -> None:
    if not (world.site / "alpha").exists():
        world.install("alpha", {"alpha/__init__.py": "raise SystemError('imported')"})
    blocks = [block.format(*deeds) for block, *deeds in body]
    script = """
import importlib
ran = []
def hit(*a):
    ran.append(a)
def decorated(f):
    ran.append(f)
    return f
class Trap(Exception):
    def __call__(self, *a): ran.append(a)
    def __enter__(self): ran.append(self)
    def __exit__(self, *a): ran.append(a)
    def __iter__(self): ran.append(self); yield 1
    @property
    def attribute(self): ran.append(self)
thing = Trap()
def f(x):
"""
    names = world.main(script + textwrap.indent("\n".join(blocks), "    ") + "\n    return hit(x)\n")
    packed = Packer().pack(names["f"])
    assert names["ran"] == [] and "alpha" not in sys.modules
    assert needs(packed) <= {"alpha"}
    if "raise" not in "".join(blocks):  # behind one, Python itself drops what follows
        assert bool(needs(packed)) == ("alpha" in "".join(blocks))


def test_a_missing_import_is_named_with_file_and_line(world: World) -> None:
    names = world.main(
        """
        def f(x):

            import nowhere.at_all
        def g(x):
            if x:
                import nowhere
        def h():
            try:
                import nowhere
            except ImportError:
                nowhere = None
        """
    )
    with pytest.raises(AnalysisError, match=r"script\.py:4\), which is not installed here") as caught:
        Packer().pack(names["f"])
    error = caught.value
    assert (error.module, error.line) == ("nowhere.at_all", 4)
    assert error.file == str(world.project / "script.py")
    assert needs(Packer().pack(names["f"], exclude=["nowhere"])) == set()
    (warning,) = Packer().pack(names["g"]).warnings
    assert "script.py:7: g imports nowhere, which is not found here" in warning
    assert Packer().pack(names["h"]).warnings == ()


def test_computed_imports(world: World) -> None:
    world.install("alpha")
    world.install("beta")
    names = world.main(
        """
        import importlib
        from importlib import import_module
        def constant():
            return importlib.import_module("alpha"), __import__("beta")
        def variable(name):
            return import_module(name)
        def passed_on():
            return map(import_module, names)
        """
    )
    assert needs(Packer().pack(names["constant"])) == {"alpha", "beta"}
    (warning,) = Packer().pack(names["variable"]).warnings
    assert "script.py:7: variable imports a module whose name it computes" in warning
    assert "script.py:9" in Packer().pack(names["passed_on"]).warnings[0]
    assert needs(Packer().pack(names["variable"], imports=["alpha"])) == {"alpha"}


# ---------------------------------------------------------------- the user's own modules


def test_two_functions_of_one_module_have_their_own_needs(world: World) -> None:
    for name in ("alpha", "beta", "gamma"):
        world.install(name)
    world.write(
        {
            "own.py": """
            import gamma

            def one():
                import alpha
                return helper()

            def two():
                import beta

            def helper():
                return constant

            constant = gamma
            """
        }
    )
    own = world.module("own")
    packer = Packer()
    one, two = packer.pack(own.one), packer.pack(own.two)
    assert needs(one) == {"alpha", "gamma"} and needs(two) == {"beta", "gamma"}
    assert sources(one) == {"own.py"} and one.overlay == two.overlay
    assert why(one)["alpha"] == "imported by own.one (own.py:5)"
    assert why(one)["gamma"] == "imported by own (own.py:2)"
    assert one.name == "own.one" and one.preload == ("alpha", "gamma")


def test_a_package_comes_whole_with_its_data_and_its_parents_run(world: World) -> None:
    for name in ("alpha", "beta", "gamma"):
        world.install(name)
    world.write(
        {
            "pack/__init__.py": "import alpha\n",
            "pack/work.py": """
            from . import table
            from .deep.inner import f as renamed
            from .stars import *

            def go():
                return renamed(), table.rows, starred()
            """,
            "pack/stars.py": "def starred():\n    import gamma\n",
            "pack/table.py": "rows = []\n",
            "pack/unused.py": "import nowhere\n",
            "pack/deep/__init__.py": "",
            "pack/deep/inner.py": "def f():\n    import beta\n",
            "pack/data/values.csv": "1,2\n",
            "pack/__pycache__/x.pyc": "",
        }
    )
    packed = Packer().pack(world.module("pack.work").go)
    assert needs(packed) == {"alpha", "beta", "gamma"}
    assert sources(packed) == {
        "pack/__init__.py", "pack/work.py", "pack/table.py", "pack/unused.py", "pack/stars.py",
        "pack/deep/__init__.py", "pack/deep/inner.py", "pack/data/values.csv",
    }  # fmt: skip


def test_what_importing_a_module_does_not_run_is_not_needed(world: World) -> None:
    world.install("alpha")
    world.write(
        {
            "own.py": """
            from __future__ import annotations
            import sys
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                import nowhere_for_types
            if sys.version_info < (3, 8):
                import nowhere_for_old
            else:
                import alpha
            if sys.platform == "none":
                import nowhere_for_none
            try:
                import nowhere_at_all
            except ModuleNotFoundError:
                pass

            def f(x: nowhere_for_types.T):
                return alpha

            if __name__ == "__main__":
                import nowhere_for_scripts
                f(1)
            """
        }
    )
    packed = Packer().pack(world.module("own").f)
    assert needs(packed) == {"alpha"} and packed.warnings == ()


def test_decorators_that_keep_a_function_and_those_that_mark_it(world: World) -> None:
    world.install("alpha")
    world.install("beta")
    world.write(
        {
            "own.py": """
            import functools
            import lfm

            registry = []

            def register(f):
                registry.append(f)
                return f

            @register
            def plugin():
                import alpha

            @lfm.task(memory="1GB")
            @functools.cache
            def marked():
                import beta

            def go():
                return [f() for f in registry]
            """
        }
    )
    own = world.module("own")
    assert needs(Packer().pack(own.go)) == {"alpha"}
    marked = Packer().pack(own.marked)
    assert needs(marked) == {"alpha", "beta"} and marked.options == {"memory": "1GB"}
    names = world.main("import functools\n@functools.lru_cache(maxsize=3)\ndef f(x):\n    import beta\n")
    assert needs(Packer().pack(names["f"])) == {"beta"}


def test_classes_follow_their_bases_and_methods(world: World) -> None:
    for name in ("alpha", "beta", "gamma"):
        world.install(name)
    world.write(
        {
            "bases.py": """
            class Base:
                def help(self):
                    import alpha
            class Other:
                def help(self):
                    import gamma
            """,
            "own.py": """
            import bases
            from bases import Other

            class Mine(bases.Base):
                def go(self):
                    import beta

            class Theirs(Other):
                pass

            def use():
                return Mine().go()
            """,
        }
    )
    own = world.module("own")
    assert needs(Packer().pack(own.use)) == {"alpha", "beta"}
    assert needs(Packer().pack(own.Theirs().help)) == {"gamma"}
    assert sources(Packer().pack(own.use)) == {"own.py", "bases.py"}


def test_a_script_that_uses_parts_of_its_own_module(world: World) -> None:
    world.install("alpha")
    world.install("beta")
    world.write({"own.py": "def a():\n    import alpha\ndef b():\n    import beta\n"})
    names = world.main(
        """
        import own
        from own import a
        def through_module():
            return own.b()
        def through_name():
            return a()
        def opaque():
            return vars(own)
        """
    )
    packer = Packer()
    assert needs(packer.pack(names["through_module"])) == {"beta"}
    assert needs(packer.pack(names["through_name"])) == {"alpha"}
    assert needs(packer.pack(names["opaque"])) == {"alpha", "beta"}


def test_modules_that_import_each_other_and_themselves(world: World) -> None:
    world.install("alpha")
    world.write(
        {
            "one.py": "import two\nfrom two import shared, other\nimport one as me\nfrom two import *\n"
            "def f():\n    return shared, other(), me.g(), missing_name\ndef g():\n    import alpha\n",
            "two.py": "from one import *\nimport one\ndef other():\n    return one.shared\nshared = 1\n",
        }
    )
    names = world.main("def f():\n    import one\n    return one.f()\n")
    assert needs(Packer().pack(names["f"])) == {"alpha"}
    world.write(
        {"three.py": "from four import x\ndef f():\n    return x\n", "four.py": "from three import x\n"}
    )
    names = world.main("def f():\n    import three\n    return three.f()\n")
    assert sources(Packer().pack(names["f"])) == {"three.py", "four.py"}


def test_a_module_that_does_not_compile_and_one_that_vanished(world: World) -> None:
    world.write({"broken.py": "def f(:\n"})
    names = world.main("def f():\n    import broken\n")
    with pytest.raises(AnalysisError, match=r"broken\.py:1: the module broken cannot be compiled"):
        Packer().pack(names["f"])


def test_a_module_that_shadows_the_standard_library(world: World) -> None:
    world.write({"colorsys.py": "def f():\n    return 1\n"})
    sys.modules.pop("colorsys", None)
    packed = Packer().pack(world.module("colorsys").f)
    assert sources(packed) == {"colorsys.py"}


# ---------------------------------------------------------------- distributions


def test_namespace_packages_are_told_apart(world: World) -> None:
    world.install("google-auth", {"google/auth/__init__.py": "", "google/auth/x.py": ""})
    world.install("protobuf", {"google/protobuf/__init__.py": "", "google/protobuf/message.py": ""})
    names = world.main(
        """
        def auth():
            import google.auth
            return google.auth.x
        def message():
            from google.protobuf import message
            return message
        def both():
            import google
            return google
        """
    )
    packer = Packer()
    assert needs(packer.pack(names["auth"])) == {"google-auth"}
    assert needs(packer.pack(names["message"])) == {"protobuf"}
    assert packer.pack(names["message"]).plan.verify == ("google.protobuf", "google.protobuf.message")
    assert needs(packer.pack(names["both"])) == {"google-auth", "protobuf"}


def test_a_part_that_one_distribution_adds_to_anothers_package(world: World) -> None:
    world.install("alpha", {"alpha/__init__.py": ""})
    world.install("alpha-extra", {"alpha/extra.py": ""})
    names = world.main("def f():\n    from alpha import extra\n")
    assert needs(Packer().pack(names["f"])) == {"alpha", "alpha-extra"}


def test_names_that_differ_from_their_distribution(world: World) -> None:
    world.install("Scikit.Thing", {"skthing/__init__.py": "", "_skthing.py": ""})
    names = world.main("def f():\n    import skthing\ndef g():\n    import _skthing\n")
    assert needs(Packer().pack(names["f"])) == needs(Packer().pack(names["g"])) == {"scikit-thing"}


def test_the_closure_of_requirements(world: World) -> None:
    world.install("alpha", requires=(
        "beta[fast]>=1", 'never; python_version < "3"', 'tests-only; extra == "test"', "absent-one", "gamma",
    ))  # fmt: skip
    world.install("beta", requires=('delta; extra == "fast"', 'epsilon; extra == "slow"'))
    world.install("gamma", requires=("alpha",))  # a circle
    for name in ("never", "tests-only", "delta", "epsilon"):
        world.install(name)
    packed = Packer().pack(world.main("def f():\n    import alpha\n")["f"])
    assert why(packed) == {
        "alpha": "imported by f (script.py:2)", "beta": "required by alpha", "gamma": "required by alpha",
        "delta": "required by beta",
    }  # fmt: skip
    assert packed.warnings == ("alpha 1.0 requires absent-one, which is not installed here",)
    assert packed.environment_name == "alpha (+3)"
    excluding = Packer().pack(world.main("def f():\n    import alpha\n")["f"], exclude=["delta"])
    assert needs(excluding) == {"alpha", "beta", "gamma"}


def test_an_extra_that_is_not_installed(world: World) -> None:
    world.install("alpha", requires=("beta[fast,no-such]>=1",))
    world.install("beta", requires=('delta>=2; extra == "fast"',))
    packed = Packer().pack(world.main("def f():\n    import alpha\n")["f"])
    assert needs(packed) == {"alpha", "beta"}
    assert packed.warnings == ('beta 1.0 requires delta>=2; extra == "fast", which is not installed here',)


def test_a_distribution_without_record(world: World) -> None:
    world.install("old-one", {"oldie/__init__.py": ""}, record=False, top_level__txt="oldie\n")
    world.install("guessed", {"guessed/__init__.py": ""}, record=False)
    names = world.main("def f():\n    import oldie.x\ndef g():\n    import guessed\n")
    world.write({"oldie/x.py": ""}, world.site)
    packer = Packer()
    packed = packer.pack(names["f"])
    assert needs(packed) == {"old-one"} and needs(packer.pack(names["g"])) == {"guessed"}
    (world.site / "oldie" / "x.py").write_text("changed = 1")
    assert Packer().pack(names["f"]).plan.key != packed.plan.key


def test_a_lone_file_among_installed_ones_and_a_lone_package(world: World) -> None:
    world.write({"lonely.py": "", "stray/__init__.py": ""}, world.site)
    packed = Packer().pack(world.main("def f():\n    import lonely, stray\n")["f"])
    (one,) = packed.plan.distributions
    assert (one.name, one.version, one.metadata) == ("lonely", "0", str(world.site / "lonely.py"))
    assert one.location == str(world.site) and sources(packed) == {"stray/__init__.py"}


def test_the_key_names_the_content_not_the_place_or_the_order(world: World, tmp_path: Path) -> None:
    world.install("alpha")
    world.install("beta")
    one = Packer().pack(world.main("def f():\n    import alpha, beta\n")["f"]).plan
    two = Packer().pack(world.main("def g():\n    import beta\n    import alpha\n")["g"]).plan
    assert one.key == two.key and [d.name for d in one.distributions] == ["alpha", "beta"]
    elsewhere = tmp_path / "other" / "site-packages"
    elsewhere.mkdir(parents=True)
    for name in ("alpha", "beta"):
        world.install(name, site=elsewhere)
    sys.path[1] = str(elsewhere)
    three = Packer().pack(world.main("def f():\n    import alpha, beta\n")["f"]).plan
    assert three.key == one.key and three.distributions[0].location == str(elsewhere)


def test_an_edit_in_site_packages_changes_the_key(world: World) -> None:
    world.install("alpha", {"alpha/__init__.py": "x = 1\n"})
    f = world.main("def f():\n    import alpha\n")["f"]
    before = Packer().pack(f).plan.key
    file = world.site / "alpha" / "__init__.py"
    file.write_text("x = 2\n")  # the same size
    later = (world.site / "alpha-1.0.dist-info" / "RECORD").stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))
    edited = Packer().pack(f).plan.key
    assert edited != before
    file.write_text("x = 1\n")
    os.utime(file, ns=(later, later))
    assert Packer().pack(f).plan.key == before  # the same content again
    file.unlink()
    file.symlink_to("nowhere")
    assert Packer().pack(f).plan.key not in (before, edited)  # a broken link is content, too


def test_generated_scripts_and_installers_notes_do_not_count(world: World) -> None:
    f = world.main("def f():\n    import alpha\n")["f"]
    info = world.install("alpha", entry_points__txt="[console_scripts]\nalpha = alpha:main\n")
    script = world.site.parent / "bin" / "alpha"
    script.parent.mkdir()
    script.write_text("#!/one/python\n")
    with (info / "RECORD").open("a") as record:
        record.write("../bin/alpha,sha256=x,1\nalpha/__pycache__/x.pyc,,\n")
    before = Packer().pack(f).plan.key
    script.write_text("#!/another/python\n")
    (info / "INSTALLER").write_text("pip")
    (info / "direct_url.json").write_text("{}")
    assert Packer().pack(f).plan.key == before


def test_plugins_found_through_entry_points(world: World) -> None:
    world.install("plug-one", entry_points__txt="[my.plugins]\nx = plug_one:x\n")
    world.install("plug-two", entry_points__txt="[other.plugins]\nx = plug_two:x\n")
    names = world.main(
        """
        from importlib.metadata import entry_points
        def f():
            return [e.load() for e in entry_points(group="my.plugins")]
        """
    )
    assert why(Packer().pack(names["f"])) == {"plug-one": "offers entry points of my.plugins"}


def test_lazy_partners(world: World) -> None:
    for name in ("pandas", "pyarrow", "fastparquet", "openpyxl", "matplotlib", "s3fs", "bs4", "lxml"):
        world.install(name)
    names = world.main(
        """
        import pandas as pd
        def parquet(path):
            return pd.read_parquet(path)
        def engine(path):
            return pd.read_parquet(path, engine="fastparquet")
        def method(frame):
            frame.to_excel("x.xlsx")
        def remote():
            return pd.read_csv("s3://bucket/x.csv")
        def soup(text):
            from bs4 import BeautifulSoup
            return BeautifulSoup(text, "lxml")
        """
    )
    packer = Packer()
    assert why(packer.pack(names["parquet"]))["pyarrow"] == "used by pandas for read_parquet"
    assert needs(packer.pack(names["engine"])) == {"pandas", "fastparquet"}
    assert needs(packer.pack(names["method"])) == set()  # nothing says that it is a frame
    assert needs(packer.pack(names["remote"])) == {"pandas", "s3fs"}
    assert needs(packer.pack(names["soup"])) == {"bs4", "lxml"}
    packed = packer.pack(names["parquet"])
    assert packed.preload == ("pandas",)  # a partner is imported when it is asked for


# ---------------------------------------------------------------- editable installs


def editable(world: World, name: str, folder: Path) -> None:
    world.install(name, {f"__editable__.{name}-1.0.pth": str(folder)}, requires=("beta",),
                  entry_points__txt=f"[my.plugins]\nx = {name}:f\n",
                  direct_url__json=json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}}))  # fmt: skip


def test_an_editable_install_of_a_src_layout(world: World) -> None:
    for name in ("alpha", "beta"):
        world.install(name)
    folder = world.project / "checkout"
    world.write({"src/mine/__init__.py": "def f():\n    import alpha\n", "src/mine/data.txt": "x"}, folder)
    world.write(
        {"src/mine.egg-info/PKG-INFO": "Name: mine\n", "src/mine.egg-info/top_level.txt": "mine\n"}, folder
    )
    editable(world, "mine", folder)
    sys.path.append(str(folder / "src"))
    packed = Packer().pack(world.module("mine").f)
    assert needs(packed) == {"alpha"}
    assert sources(packed) == {
        "mine/__init__.py", "mine/data.txt", "mine-1.0.dist-info/METADATA", "mine-1.0.dist-info/entry_points.txt",
    }  # fmt: skip
    assert packed.homes == {"src/mine/__init__.py": str(folder / "src" / "mine" / "__init__.py")}
    asked = Packer().pack(lambda: None, imports=["mine"])
    assert needs(asked) == {"alpha", "beta"} and "mine/__init__.py" in sources(asked)


def test_an_editable_install_through_a_finder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install("alpha")
    folder = world.project / "checkout"
    world.write({"mine/__init__.py": "", "mine/sub.py": "def f():\n    import alpha\n"}, folder)
    editable(world, "mine", folder)

    class Finder:
        @classmethod
        def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
            from importlib.util import spec_from_file_location

            init = folder / "mine" / "__init__.py"
            return spec_from_file_location(name, init) if name == "mine" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    names = world.main("def f():\n    from mine.sub import f\n    return f()\n")
    packed = Packer().pack(names["f"])
    assert needs(packed) == {"alpha"} and "mine/sub.py" in sources(packed)
    assert packed.homes["src/mine/sub.py"] == str(folder / "mine" / "sub.py")
    assert "mine" not in sys.modules


def test_an_installed_one_that_requires_an_editable_one(world: World) -> None:
    for name in ("beta", "gamma"):
        world.install(name)
    world.install("alpha", requires=("mine",))
    folder = world.project / "checkout"
    world.write({"src/mine/__init__.py": "import gamma\n"}, folder)
    editable(world, "mine", folder)
    sys.path.append(str(folder / "src"))
    packed = Packer().pack(world.main("def f():\n    import alpha\n")["f"])
    assert needs(packed) == {"alpha", "beta", "gamma"} and "mine/__init__.py" in sources(packed)


# ---------------------------------------------------------------- conda


def conda_package(
    prefix: Path, name: str, files: list[str], depends: tuple[str, ...] = (), sha: str = "0"
) -> None:
    meta = prefix / "conda-meta"
    meta.mkdir(exist_ok=True)
    said = {
        "name": name,
        "version": "1.0",
        "build": "py_0",
        "depends": depends,
        "files": files,
        "sha256": sha,
    }
    (meta / f"{name}-1.0-py_0.json").write_text(json.dumps(said))


def test_a_conda_prefix(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = world.site.parent
    monkeypatch.setattr(sys, "prefix", str(prefix))
    for name in ("alpha", "py-yaml", "piped"):
        world.install(name, {f"{name.replace('py-', '')}/__init__.py": ""}, requires=("beta",))
    world.write({"compiled/__init__.py": ""}, world.site)
    conda_package(prefix, "python", ["bin/python"], ("libz >=1", "__glibc >=2.17"))
    conda_package(prefix, "libz", ["lib/libz.so"])
    conda_package(prefix, "alpha", ["site-packages/alpha/__init__.py", "site-packages/alpha-1.0.dist-info/METADATA"],
                  ("python >=3.8,<4", "libalpha 1.* h_0", "absent"))  # fmt: skip
    conda_package(prefix, "libalpha", ["lib/libalpha.so"], ("libz",))
    conda_package(
        prefix, "pyyaml", ["site-packages/yaml/__init__.py", "site-packages/py_yaml-1.0.dist-info/METADATA"]
    )
    conda_package(prefix, "compiled", ["site-packages/compiled/__init__.py"], ("libalpha",))
    world.install("beta")
    conda_package(prefix, "beta-py", ["site-packages/beta-1.0.dist-info/METADATA"])
    names = world.main(
        "def a():\n    import alpha\ndef b():\n    import yaml\ndef c():\n    import compiled\n"
        "def d():\n    import piped\n"
    )
    packer = Packer()
    packed = packer.pack(names["a"])
    assert packed.plan.kind == "conda"
    assert why(packed) == {
        "alpha": "imported by a (script.py:2)", "python": "the interpreter", "libalpha": "required by alpha",
        "libz": "required by python",
    }  # fmt: skip
    assert packed.warnings == ("alpha 1.0 requires absent, which is not installed here",)
    assert packed.plan.verify == ("alpha",)
    one = packed.plan.distributions[0]
    assert (one.location, one.metadata) == (str(prefix), str(prefix / "conda-meta" / "alpha-1.0-py_0.json"))
    assert needs(packer.pack(names["b"])) == {"pyyaml", "python", "libz"}
    assert needs(packer.pack(names["c"])) == {"compiled", "python", "libalpha", "libz"}
    piped = packer.pack(names["d"])  # by pip, into the prefix: its requirement is conda's
    assert needs(piped) == {"piped", "beta-py", "python", "libz"}
    assert piped.plan.verify == ("piped",) and piped.plan.whole["distributions"] == 7
    conda_package(prefix, "libz", ["lib/libz.so"], sha="1")
    assert Packer().pack(names["a"]).plan.key != packed.plan.key


# ---------------------------------------------------------------- lfm itself


def holds_lfm(packed: Packed) -> bool:
    told = any(
        "lfm, used by" in warning for warning in packed.warnings
    )  # run from a source tree, not installed
    return told or (
        "pyzmq" in needs(packed) and ("lfm" in needs(packed) or "lfm/__init__.py" in sources(packed))
    )


def test_lfm_is_not_dragged_along_for_decorating_and_submitting(world: World) -> None:
    world.write(
        {
            "own.py": """
            import lfm
            from lfm import Executor, errors

            @lfm.task(memory="1GB")
            def f(x):
                try:
                    return x
                except (errors.ResourceExhausted, lfm.LfmError):
                    return None

            def submit():
                return Executor().submit(f, 1)
            """
        }
    )
    own = world.module("own")
    packed = Packer().pack(own.f)
    assert needs(packed) == set() and sources(packed) == {"own.py"}
    assert {"lib/lfm/__init__.py", "lib/lfm/errors.py", "lib/cloudpickle/__init__.py"} <= set(overlay(packed))
    assert holds_lfm(Packer().pack(own.submit))
    names = world.main(
        """
        import lfm
        @lfm.task
        def plain(x):
            return lfm.errors.LfmError
        def inside():
            with lfm.Executor() as ex:
                return ex
        """
    )
    assert needs(Packer().pack(names["plain"])) == set()
    assert holds_lfm(Packer().pack(names["inside"]))


def test_what_import_lfm_finds_in_a_call(tmp_path: Path) -> None:
    for name, data in overlay(Packer().pack(len)).items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    code = """
        import sys
        sys.path = [p for p in sys.path if "-packages" not in p] + [sys.argv[1]]
        import lfm
        from lfm import Executor, ResourceExhausted, Usage, task
        from lfm.testing import LocalCluster
        import lfm.executor
        assert task(memory="1GB")(lambda x: x + 1)(1) == 2 and issubclass(ResourceExhausted, lfm.LfmError)
        for absent in (Executor, LocalCluster, lfm.executor.Executor):
            try:
                absent()
            except RuntimeError as error:
                assert "imports=['lfm']" in str(error)
            else:
                raise SystemExit("no error")
        assert not hasattr(lfm, "__wrapped__")
        """
    done = subprocess.run([sys.executable, "-I", "-S", "-c", textwrap.dedent(code), str(tmp_path / "lib")],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- caching


def test_an_edited_module_makes_a_new_overlay_and_the_same_environment(world: World) -> None:
    world.install("alpha")
    world.install("beta")
    world.write({"own.py": "def f():\n    import alpha\n"})
    own, packer = world.module("own"), Packer()
    first = packer.pack(own.f)
    assert packer.pack(own.f) is first
    world.write({"own.py": "def f():\n    import alpha\n    return 2\n"})
    second = packer.pack(own.f)
    assert second is not first and second.plan.key == first.plan.key and second.function != first.function
    assert overlay(second)["src/own.py"] == (world.project / "own.py").read_bytes()
    world.write({"own.py": "def f():\n    import beta\n"})
    assert needs(packer.pack(own.f)) == {"beta"}
    assert packer.pack(own.f) is packer.pack(own.f)


def test_a_new_file_in_a_package_is_noticed(world: World) -> None:
    world.write({"pack/__init__.py": "def f():\n    pass\n"})
    pack, packer = world.module("pack"), Packer()
    first = packer.pack(pack.f)
    world.write({"pack/more.txt": "x"})
    assert "pack/more.txt" in sources(packer.pack(pack.f)) and "pack/more.txt" not in sources(first)


def test_what_cannot_travel_with_a_package_is_warned_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm.function import overlay as layer

    world.write({"pack/__init__.py": "def f():\n    pass\n", "pack/small": "x", "pack/large": "x" * 2000})
    (world.project / "pack" / "broken").symlink_to("nowhere")
    monkeypatch.setattr(layer, "LARGE", 1000)
    packed = Packer().pack(world.module("pack").f)
    assert sources(packed) == {"pack/__init__.py", "pack/small"}
    (warning,) = packed.warnings
    assert "pack/large does not travel with its package: it is too large" in warning


def test_changed_globals_closures_and_helpers_are_noticed(world: World) -> None:
    names = world.main(
        """
        limit, table = 1, {"a": [1]}
        class Settings:
            depth = 1
        settings = Settings()
        def helper():
            return 1
        def f():
            return limit, table, settings, helper()
        """
    )
    packer, f = Packer(), names["f"]
    seen = [packer.pack(f)]

    def changed() -> bool:
        seen.append(packer.pack(f))
        return seen[-1] is not seen[-2]

    assert not changed()
    names["limit"] = 2
    assert changed() and not changed()
    names["table"]["a"].append(2)
    assert changed() and not changed()
    names["settings"].depth = 5
    assert changed() and not changed()
    exec("def helper():\n    return limit + 5\n", names)
    assert changed() and not changed()


def test_the_same_code_in_a_new_function_is_analysed_once(world: World) -> None:
    world.install("alpha")
    make: Callable[[int], Any] = world.main("def make(i):\n    return lambda: __import__('alpha') and i\n")[
        "make"
    ]
    packer = Packer()
    packed = [packer.pack(make(i)) for i in (1, 2, 1)]
    assert packed[0].function == packed[2].function != packed[1].function
    assert len(packer._analyses) == 1


def test_what_is_installed_meanwhile_is_noticed(world: World) -> None:
    f = world.main("def f():\n    try:\n        import alpha\n    except ImportError:\n        pass\n")["f"]
    packer = Packer()
    assert needs(packer.pack(f)) == set()
    world.install("zeta")
    packer.pack(f)
    before = world.site.stat().st_mtime_ns
    world.install("alpha")
    os.utime(world.site, ns=(before + 10**9, before + 10**9))
    assert needs(packer.pack(f)) == {"alpha"}


# ---------------------------------------------------------------- arguments


def test_arguments_extend_the_environment_and_plain_ones_do_not(world: World) -> None:
    world.install("alpha", {"alpha/__init__.py": "class Frame:\n    pass\n"})
    world.install("beta")
    world.write({"own.py": "class Point:\n    def move(self):\n        import beta\n"})
    f = world.main("def f(x):\n    return x\n")["f"]
    packer = Packer()
    packed = packer.pack(f)
    for plain in (1, "x", [1, {"a": (2.0, None)}], b"x"):
        assert packer.arguments(packed, (plain,), {"k": plain})[0] is packed
    frame = world.module("alpha").Frame()
    grown, _ = packer.arguments(packed, ([frame],), {})
    assert why(grown) == {"alpha": "used by f"} and grown.code is packed.code
    assert packer.arguments(packed, (frame,), {})[0] is grown
    assert packer.arguments(grown, (frame,), {})[0] is grown
    point = world.module("own").Point()
    local, _ = packer.arguments(packed, (), {"p": point})
    assert needs(local) == {"beta"} and sources(local) == {"own.py"}
    by_value, _ = packer.arguments(packed, (world.main("def g():\n    import beta\n")["g"],), {})
    assert needs(by_value) == {"beta"}
    chunk, _ = packer.object(packed, [((1,), {}), ((frame,), {})])
    assert chunk is grown


def test_explicit_environments_still_bring_the_users_own_modules(world: World) -> None:
    world.write({"own.py": "import nowhere_here\ndef f():\n    pass\n"})
    names = world.main("def f():\n    from own import f\n    return f()\n")
    packed = Packer().pack(names["f"], environment=["numpy>=1", "nowhere-here"])
    assert packed.plan.kind == "spec" and packed.plan.specification == ("nowhere-here", "numpy>=1")
    assert sources(packed) == {"own.py"} and packed.warnings == ()
    assert packed.plan.verify == ("nowhere_here",)  # not here, so it must be there


# ---------------------------------------------------------------- what calls teach


def test_what_a_call_failed_to_import_is_learned(world: World, cache: Path) -> None:
    for name in ("alpha", "beta"):
        world.install(name)
    world.write({"plugin.py": "import beta\n"})
    f = world.main("from importlib import import_module\ndef f(name):\n    return import_module(name)\n")["f"]
    packer = Packer()
    packed = packer.pack(f)
    assert needs(packed) == set()
    grown = packer.repair(packed, "alpha", "mod.py:12")
    assert grown is not None and why(grown) == {"alpha": "learned: import failed in mod.py:12"}
    assert grown.code is packed.code and grown.plan.verify == grown.preload == ("alpha",)
    assert packer.repair(packed, "alpha", "mod.py:12") is grown  # another call of the same
    assert packer.repair(grown, "alpha", "mod.py:12") is None  # it is there: more of it does not help
    local = packer.repair(grown, "plugin", "mod.py:3")
    assert local is not None and needs(local) == {"alpha", "beta"} and sources(local) == {"plugin.py"}
    assert packer.pack(f).function == local.function
    assert needs(Packer().pack(f)) == {"alpha", "beta"}  # a later session
    assert needs(Packer().pack(f, exclude=["plugin"])) == {"alpha"}
    for useless in ("nowhere", "json", "nowhere.at.all"):
        assert packer.repair(local, useless, "mod.py:1") is None
    assert (cache / "learned.json").stat().st_mode & 0o077 == 0
    again = world.main("from importlib import import_module\ndef g(name):\n    return import_module(name)\n")[
        "g"
    ]
    assert needs(packer.pack(again)) == set()
    (cache / "learned.json").write_text("{ nonsense")
    assert needs(Packer().pack(f)) == set()


def test_what_a_message_asks_to_install(world: World, cache: Path) -> None:
    """Packages that did without an optional partner say in words of their own that it is needed now."""
    world.install("alpha")
    world.install("Scikit.Thing", {"skthing/__init__.py": "", "skthing/part.py": ""})
    world.write({"mine.py": ""})
    packer = Packer()
    packed = packer.pack(world.main("def f():\n    import alpha\n")["f"])
    for text in ("skthing needs to be installed to use this module", "You must install scikit-thing, and restart your session."):
        assert asks_to_install(text) and packer.asked_for(packed, text) == "skthing"
    for text in ("install alpha", "install json, this or that", "install nowhere", "mine must be installed", "install", ""):
        assert packer.asked_for(packed, text) is None, text
    assert not asks_to_install("alpha needs skthing")
    grown = packer.repair(packed, "skthing", "boost.py:7")
    assert grown is not None and needs(grown) == {"alpha", "scikit-thing"}
    assert packer.asked_for(grown, "install skthing") is None


def test_what_was_learned_and_is_gone_does_not_matter(world: World, cache: Path) -> None:
    world.install("alpha")
    f = world.main("def f(name):\n    return __import__(name)\n")["f"]
    packer = Packer()
    assert packer.repair(packer.pack(f), "alpha.sub.more", "mod.py:1") is not None
    info = next(world.site.glob("alpha-*"))
    for path in (*info.iterdir(), world.site / "alpha" / "__init__.py"):
        path.unlink()
    info.rmdir()
    (world.site / "alpha").rmdir()
    assert needs(Packer().pack(f)) == set()


def test_a_cache_that_cannot_be_written(world: World, cache: Path) -> None:
    world.install("alpha")
    cache.write_text("a file where the folder should be")
    f = world.main("def f(name):\n    return __import__(name)\n")["f"]
    packer = Packer()
    assert packer.repair(packer.pack(f), "alpha", "mod.py:1") is not None
    assert needs(packer.pack(f)) == {"alpha"}

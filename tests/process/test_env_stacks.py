"""Functions of many kinds, each run in the environment that was found for it, with nothing else to import.

The environments are laid out as links to their packages instead of being packed, which other tests do: what is
tried here is that the distributions found are those needed, and enough.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from lfm.function.pack import Packer
from lfm_manager.environments.build import assemble
from lfm_manager.environments.packages import Packages
from lfm_manager.environments.progress import silent

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

# (the distributions it needs itself; those they require are added), the function's body, what it prints
STACKS: dict[str, tuple[str, str, str]] = {
    "nothing": ("", "return sum(range(10))", "45"),
    "stdlib": (
        "",
        "import sqlite3, json, decimal\n    return json.dumps(str(decimal.Decimal('1.5')))",
        '"1.5"',
    ),
    "numpy": ("numpy", "import numpy as np\n    return int(np.arange(4).sum())", "6"),
    "numpy_linalg": ("numpy", "from numpy.linalg import det\n    return round(det([[2, 0], [0, 3]]))", "6"),
    "numpy_random": ("numpy", "from numpy import random\n    return random.default_rng(1).integers(1)", "0"),
    "scipy": (
        "scipy",
        "from scipy.optimize import brentq\n    return round(brentq(lambda x: x - 2, 0, 5))",
        "2",
    ),
    "scipy_sparse": (
        "scipy numpy",
        "import numpy\n    import scipy.sparse as s\n    return s.csr_matrix(numpy.eye(3)).nnz",
        "3",
    ),
    "sklearn": (
        "scikit-learn",
        "from sklearn.tree import DecisionTreeClassifier as T\n    return T().fit([[0], [1]], [0, 1]).predict([[1]])[0]",
        "1",
    ),
    "joblib": ("joblib", "import joblib\n    return len(joblib.hash(1))", "32"),
    "threadpoolctl": (
        "threadpoolctl",
        "import threadpoolctl\n    return threadpoolctl.threadpool_info()",
        "[]",
    ),
    "pandas": ("pandas", "import pandas as pd\n    return int(pd.DataFrame({'a': [1, 2]}).a.sum())", "3"),
    "dateutil": (
        "python-dateutil",
        "from dateutil.parser import parse\n    return parse('2 May 2020').day",
        "2",
    ),
    "rdkit": (
        "rdkit",
        "from rdkit import Chem\n    return Chem.MolToSmiles(Chem.MolFromSmiles('OCC'))",
        "CCO",
    ),
    "pillow": ("pillow", "from PIL import Image\n    return Image.new('L', (2, 3)).size", "(2, 3)"),
    "matplotlib": (
        "matplotlib",
        "import io\n    import matplotlib\n    matplotlib.use('agg')\n    import matplotlib.pyplot as p\n"
        "    p.plot([1, 2])\n    out = io.BytesIO()\n    p.savefig(out)\n    return out.getvalue()[1:4]",
        "b'PNG'",
    ),
    "awkward": (
        "awkward",
        "import awkward as ak\n    return ak.num(ak.Array([[1], [2, 3]])).tolist()",
        "[1, 2]",
    ),
    "uproot": (
        "uproot",
        "import uproot\n    return uproot.TTree.__name__ if hasattr(uproot, 'TTree') else 'ok'",
        "TTree",
    ),
    "hist": ("hist", "import hist\n    return hist.Hist.new.Reg(2, 0, 1).Double().fill([0.1]).sum()", "1.0"),
    "boost_histogram": (
        "boost-histogram",
        "import boost_histogram as b\n    return b.axis.Regular(3, 0, 1).size",
        "3",
    ),
    "requests": (
        "requests",
        "import requests\n    return requests.Request('GET', 'http://a').prepare().url",
        "http://a/",
    ),
    "urllib3": (
        "urllib3",
        "from urllib3.util import parse_url\n    return parse_url('http://a/b').path",
        "/b",
    ),
    "certifi": ("certifi", "import certifi, os\n    return os.path.isfile(certifi.where())", "True"),
    "idna": ("idna", "import idna\n    return idna.encode('é')", "b'xn--9ca'"),
    "rich": ("rich", "from rich.text import Text\n    return Text.from_markup('[b]x[/b]').plain", "x"),
    "pygments": (
        "pygments",
        "from pygments.lexers import get_lexer_by_name\n    return get_lexer_by_name('python').name",
        "Python",
    ),
    "markdown": (
        "markdown-it-py",
        "from markdown_it import MarkdownIt\n    return MarkdownIt().render('*a*')",
        "<p><em>a</em></p>",
    ),
    "click": ("click", "import click\n    return click.unstyle(click.style('a', fg='red'))", "a"),
    "msgpack": ("msgpack", "import msgpack\n    return msgpack.unpackb(msgpack.packb([1]))", "[1]"),
    "psutil": ("psutil", "import psutil\n    return psutil.Process().pid > 0", "True"),
    "zmq": ("pyzmq", "import zmq\n    return zmq.Context.instance().closed", "False"),
    "zstandard": ("zstandard", "import zstandard as z\n    return z.decompress(z.compress(b'a'))", "b'a'"),
    "xxhash": ("xxhash", "import xxhash\n    return xxhash.xxh32(b'a').intdigest()", "1426945110"),
    "cloudpickle": (
        "cloudpickle",
        "import cloudpickle\n    return cloudpickle.loads(cloudpickle.dumps(1))",
        "1",
    ),
    "packaging": ("packaging", "from packaging.version import Version\n    return Version('1.0').major", "1"),
    "sortedcontainers": (
        "sortedcontainers",
        "from sortedcontainers import SortedList\n    return SortedList([2, 1])[0]",
        "1",
    ),
    "constant_import": (
        "tqdm",
        "import importlib\n    return importlib.import_module('tqdm.auto').__name__",
        "tqdm.auto",
    ),
    "guarded": (
        "fsspec",
        "import fsspec\n    try:\n        import surely_not_installed\n    except ImportError:\n        return fsspec.filesystem('memory').protocol",
        "memory",
    ),
    "zoneinfo": (
        "tzdata",
        "import tzdata\n    from importlib.resources import files\n    return files('tzdata').name",
        "tzdata",
    ),
    "hypothesis": (
        "hypothesis",
        "from hypothesis import strategies as s\n    return s.just(3).example.__name__",
        "example",
    ),
}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: str) -> set[str]:
    """These and all that they require here, worked out from the metadata alone."""
    found: set[str] = set()
    wanted = [(name, frozenset[str]()) for name in names.split()]
    seen = set()
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(normalise(name))
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                wanted.append((normalise(requirement.name), frozenset(requirement.extras)))
    return found


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A user's module with all of these functions in it."""
    folder = tmp_path_factory.mktemp("user")
    source = "".join(f"def {name}():\n    {body}\n\n" for name, (_, body, _) in STACKS.items())
    (folder / "stacks_of_a_user.py").write_text(source)
    sys.path.insert(0, str(folder))
    try:
        yield import_module("stacks_of_a_user")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["stacks_of_a_user"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer()


def lay_out(overlay: bytes | None, into: Path) -> Path:
    if overlay:
        with tarfile.open(fileobj=io.BytesIO(overlay)) as tar:
            tar.extractall(into, filter="data")
    return into / "src"


@pytest.mark.parametrize("name", STACKS)
def test_a_function_runs_in_what_was_found_for_it(
    name: str, module: ModuleType, packages: Packages, packer: Packer, tmp_path: Path
) -> None:
    needs, _, printed = STACKS[name]
    for need in needs.split():
        try:
            importlib.metadata.version(need)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {need}")
    function: Callable[[], object] = getattr(module, name)
    packed = packer.pack(function)
    assert {d.name for d in packed.plan.distributions} == closure(needs)

    work = tmp_path / "work"
    assembled = assemble(packed.plan, work, packages, silent)
    prefix = tmp_path / "prefix"
    made = set()
    for file in assembled.environment.files:
        target = prefix / file.target
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        os.link(file.source, target, follow_symlinks=False)
    source = lay_out(packed.overlay, tmp_path / "overlay")
    code = (
        f"import sys\nsys.path.insert(0, {str(source)!r})\nimport stacks_of_a_user as m\nprint(m.{name}())\n"
        f"outside = [f for f in (getattr(x, '__file__', None) for x in list(sys.modules.values()))\n"
        f"           if f and not f.startswith((sys.prefix, {str(source)!r}))]\n"
        f"assert not outside, outside\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [prefix / "bin" / "python", "-I", "-B", "-c", code], env={"HOME": str(home)}, cwd=home,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed

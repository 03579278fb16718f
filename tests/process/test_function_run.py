"""Real functions over real distributions: each gets exactly what it needs, and runs where nothing else is."""

import pickle
import runpy
import shutil
import subprocess
import tarfile
import warnings
from importlib import metadata
from io import BytesIO
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lfm.function import interpreter
from lfm.function.installed import Installation, Installed
from lfm.function.pack import Packed, Packer
from lfm.monitor import payload

pytestmark = pytest.mark.process
HERE = Path(__file__).parent

# In the other process: only the standard library, what the plan lists, and the overlay.
RUNNER = """
import pickle, sys
site, overlay, code, arguments, answer = sys.argv[1:]
sys.path[:0] = [overlay + "/src"]
sys.path += [site, overlay + "/lib"]
def segments(path):
    import struct
    data = bytearray(open(path, "rb").read())
    view = memoryview(data)
    count = struct.unpack_from("<4sI", view)[1]
    at, found = 8 + 8 * count, []
    for size in struct.unpack_from(f"<{count}Q", view, 8):
        at += -at % 64
        found.append(view[at : at + size])
        at += size
    return found
head, *buffers = segments(code)
function = pickle.loads(head, buffers=buffers)
head, *buffers = segments(arguments)
args, kwargs = pickle.loads(head, buffers=buffers)
value = function(*args, **kwargs)
import cloudpickle
with open(answer, "wb") as file:
    file.write(cloudpickle.dumps(value))
"""


def lay_out(packed: Packed, into: Path) -> Path:
    """A folder with the files of the plan's distributions and of nothing else, as links."""
    site = into / "site"
    site.mkdir(parents=True)
    everybody = Installed().by_name.values()
    for planned in packed.plan.distributions:
        one = Installation(planned.metadata)
        paths = [path for path, _, _ in one.files() if not path.startswith("..")]
        tops = {path.partition("/")[0] for path in paths}
        shared = {
            top for top in tops for other in everybody if other.name != one.name and other.owns_below(top)
        }
        for path in (*sorted(tops - shared), *(p for p in paths if p.partition("/")[0] in shared)):
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(one.location, path).exists():
                target.symlink_to(Path(one.location, path))
    assert packed.overlay is not None
    with tarfile.open(fileobj=BytesIO(packed.overlay)) as tar:
        tar.extractall(into / "overlay", filter="data")
    return site


def run(packed: Packed, arguments: list[payload.Buffer], into: Path) -> object:
    site = lay_out(packed, into)
    (into / "code").write_bytes(b"".join(packed.code))
    (into / "arguments").write_bytes(b"".join(arguments))
    done = subprocess.run(
        [interpreter.this().executable, "-I", "-S", "-c", RUNNER, site, into / "overlay", into / "code",
         into / "arguments", into / "answer"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pickle.loads((into / "answer").read_bytes())


def closure(roots: set[str]) -> set[str]:
    """The same question put to the standard library and ``packaging``, one line at a time."""
    found: set[str] = set()
    waiting = sorted(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for requirement in map(Requirement, metadata.distribution(name).requires or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    waiting.append(canonicalize_name(requirement.name))
    return found


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer()


@pytest.fixture(scope="module")
def stacks() -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path(str(HERE / "functions" / "stacks.py"), run_name="__main__")["CASES"]


COUNT = 38


@pytest.mark.parametrize("index", range(COUNT))
def test_a_function_gets_exactly_what_it_needs_and_runs_there(index, packer, stacks, tmp_path):
    assert len(stacks) == COUNT
    function, args, needs, gives = stacks[index]
    packed, arguments = packer.arguments(packer.pack(function), args, {})
    assert {one.name for one in packed.plan.distributions} == closure(needs), packed.name
    assert run(packed, arguments, tmp_path / "run") == gives
    shutil.rmtree(tmp_path / "run")

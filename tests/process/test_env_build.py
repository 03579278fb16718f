"""Environments for people with a venv, pyenv or their system's Python: built, packed, verified, unpacked and run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lfm.function.plan import Plan
from lfm_manager.environments.child import build, build_command
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.store import Built, Store
from lfm_manager.environments.verify import look

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

# Run by any interpreter: the plan that lfm.function would make of these distributions, by hand.
PLANNER = r"""
import hashlib, importlib.metadata as md, json, os, platform, re, sys, sysconfig
names, verify = json.loads(sys.argv[1])
def distribution(name):
    found = md.distribution(name)
    folder = str(found._path)
    files = [(str(f), os.path.join(os.path.dirname(folder), str(f))) for f in found.files or ()]
    content = [(n, open(p, "rb").read().hex()) for n, p in files if os.path.isfile(p) and not n.endswith((".pyc", "RECORD"))]
    return {"name": re.sub(r"[-_.]+", "-", name).lower(), "version": found.version, "why": "a test",
            "location": os.path.dirname(folder), "metadata": folder,
            "fingerprint": hashlib.sha256(json.dumps([folder, content]).encode()).hexdigest()}
executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
interpreter = {"executable": executable, "version": platform.python_version(), "prefix": sys.prefix,
    "base_prefix": sys.base_prefix, "soabi": sysconfig.get_config_var("SOABI"), "machine": platform.machine(),
    "libc": " ".join(platform.libc_ver()), "fingerprint": hashlib.sha256(executable.encode()).hexdigest()}
found = sorted(map(distribution, names), key=lambda d: d["name"])
key = hashlib.sha256(json.dumps([found, interpreter]).encode()).hexdigest()
print(json.dumps({"version": 1, "kind": "python", "key": key, "interpreter": interpreter, "distributions": found,
    "verify": verify, "specification": [], "channels": [], "tarball": "", "whole": {}, "host": ""}))
"""


def plan(*names: str, verify: tuple[str, ...] = (), python: str | Path = sys.executable) -> Plan:
    done = subprocess.run(
        [python, "-c", PLANNER, json.dumps([names, verify])], capture_output=True, check=True, timeout=120
    )
    return Plan.from_json(done.stdout)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture
def store(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of its own; packages are shared among the tests, as among a user's environments."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "packages").symlink_to(shared_cache)
    monkeypatch.setenv("LFM_CACHE", str(cache))
    return Store()


def unpacked(built: Built, into: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "lfm_worker.shell.unpack", built.path, built.digest, into],
        check=True,
        timeout=300,
    )
    return into / built.digest


def run(prefix: Path, code: str) -> str:
    """Run it as on a node that has nothing: no variable set, no folder of ours in sight."""
    done = subprocess.run(
        [prefix / "bin" / "python", "-B", "-c", code],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------- it runs


def test_the_standard_library_alone(store: Store, tmp_path: Path) -> None:
    modules = (
        "ssl",
        "sqlite3",
        "ctypes",
        "lzma",
        "bz2",
        "zlib",
        "hashlib",
        "decimal",
        "multiprocessing.pool",
        "uuid",
    )
    built = build(plan(verify=modules), store)
    assert built.distributions == ()
    assert built.python == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"glibc 2\.\d+", built.libc)
    assert hashlib.sha256(built.path.read_bytes()).hexdigest() == built.digest
    prefix = unpacked(built, tmp_path / "node")
    maps = run(prefix, "import ssl, sqlite3, lzma; print(open('/proc/self/maps').read())")
    libraries = {line.split()[-1] for line in maps.splitlines() if ".so" in line}
    headers = run(prefix, "import sysconfig, os; print(os.path.exists(sysconfig.get_path('include') + '/Python.h'))")
    assert headers == str(Path(sysconfig.get_path("include"), "Python.h").exists())
    foreign = {Path(path).name for path in libraries if not path.startswith(str(prefix))}
    assert all(re.match(r"ld-linux|lib(c|m|dl|pthread|rt|util)[.-]", name) for name in foreign), foreign
    assert run(prefix, "import json.decoder as d, os; print(os.path.exists(d.__cached__))") == "True"


def test_a_compiled_distribution_and_nothing_else(store: Store, tmp_path: Path) -> None:
    built = build(plan("msgpack", verify=("msgpack",)), store)
    assert [d["name"] for d in built.distributions] == ["msgpack"]
    prefix = unpacked(built, tmp_path / "node")
    assert (
        run(prefix, "import msgpack._cmsgpack as m, sys; print(m.__file__.startswith(sys.prefix))") == "True"
    )
    assert (
        run(prefix, "import importlib.util as u; print(u.find_spec('click'), u.find_spec('lfm'))")
        == "None None"
    )
    assert run(prefix, "import sys; print([p for p in sys.path if not p.startswith(sys.prefix)])") == "['']"


def test_metadata_and_console_scripts_travel(store: Store, tmp_path: Path) -> None:
    built = build(plan("pygments", verify=("pygments",)), store)
    prefix = unpacked(built, tmp_path / "node")
    code = "import importlib.metadata as m; print(m.version('pygments'), len(m.files('pygments')) > 100)"
    assert run(prefix, code).endswith(" True")
    script = subprocess.run(
        [prefix / "bin" / "pygmentize", "-V"],
        env={"PATH": f"{prefix}/bin:{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert script.stdout.startswith("Pygments version")


def other_pythons() -> list[str]:
    """Other CPythons of 3.11 or later on this machine."""
    found = {}
    candidates = [
        *Path.home().glob(".pyenv/versions/3.*/bin/python3"),
        Path("/usr/bin/python3"),
        Path("/usr/local/bin/python3"),
    ]
    for path in candidates:
        if path.exists() and not path.samefile(sys.executable):
            code = "import sys; print(sys.version_info >= (3, 11), sys.implementation.name)"
            done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
            if done.stdout.split() == ["True", "cpython"]:
                found[os.path.realpath(path)] = str(path)
    return sorted(found.values())


@pytest.mark.parametrize("python", other_pythons())
def test_a_client_on_another_python(store: Store, tmp_path: Path, python: str) -> None:
    built = build(plan(python=python, verify=("ssl", "sqlite3", "json")), store)
    prefix = unpacked(built, tmp_path / "node")
    version = run(prefix, "import sys, ssl, sqlite3; print('.'.join(map(str, sys.version_info[:3])))")
    assert version == built.python != ".".join(map(str, sys.version_info[:3]))


def test_packages_of_a_debian_python(store: Store, tmp_path: Path) -> None:
    found = [p for p in Path("/usr/lib/python3/dist-packages").glob("PyYAML-*") if p.is_dir()]
    if not found:
        pytest.skip("needs Debian's python3-yaml")
    made = plan("PyYAML", verify=("yaml",), python="/usr/bin/python3")
    prefix = unpacked(build(made, store), tmp_path / "node")
    assert (
        run(prefix, "import yaml; print(yaml.safe_load('a: [1]'), yaml.__with_libyaml__)")
        == "{'a': [1]} True"
    )


ANALYSE = """
import json, sys
sys.path += json.loads(sys.argv[1])  # where lfm is, last: what is imported is this environment's own
from lfm.function.pack import Packer
def f():
    import pip
    return pip.__version__
print(Packer().pack(f).plan.to_json().decode())
"""


@pytest.mark.parametrize("made_by", ["venv --system-site-packages", "uv venv --system-site-packages"])
def test_what_a_venv_takes_from_the_python_that_it_was_made_of(store: Store, tmp_path: Path, made_by: str) -> None:
    base = getattr(sys, "_base_executable", sys.executable)
    theirs = subprocess.run([base, "-I", "-c", "import pip; print(pip.__file__)"], capture_output=True, text=True, check=False)
    if theirs.returncode:
        pytest.skip("the Python that this venv was made of has no pip")
    root = tmp_path / "venv"
    if made_by.startswith("uv"):
        uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
        if uv is None:
            pytest.skip("needs uv")
        subprocess.run([uv, *made_by.split()[1:], "--quiet", "--python", base, root], check=True, timeout=120)
    else:
        subprocess.run([base, "-m", *made_by.split(), "--without-pip", root], check=True, timeout=120)
    paths = json.dumps([path for path in sys.path if path])
    done = subprocess.run([root / "bin" / "python", "-c", ANALYSE, paths], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120)
    made = Plan.from_json(done.stdout.encode())
    (one,) = made.distributions
    assert one.name == "pip" and theirs.stdout.startswith(one.location)
    prefix = unpacked(build(made, store), tmp_path / "node")
    assert run(prefix, "import pip; print(pip.__version__)") == one.version


# ---------------------------------------------------------------- once, and the same


def test_a_second_build_finds_the_first(store: Store) -> None:
    made = plan("packaging")
    first = build(made, store)
    inode = first.path.stat().st_ino
    assert build(made, store) == first  # made when that one was, and in the same time
    assert first.path.stat().st_ino == inode


def test_two_caches_give_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan("msgpack", "pygments")
    first = build(made, store)
    monkeypatch.setenv("LFM_CACHE", str(tmp_path / "another"))
    second = build(made, Store())
    assert second.path != first.path
    assert second.digest == first.digest


def test_many_ask_at_once_and_one_builds(store: Store, tmp_path: Path) -> None:
    made = plan("packaging", "click")
    source = tmp_path / "plan.json"
    source.write_bytes(made.to_json())

    def ask(number: int) -> tuple[str, int]:
        result = tmp_path / f"result-{number}.json"
        done = subprocess.run(
            build_command(source, store.root, result), capture_output=True, text=True, timeout=300, check=True
        )
        return json.loads(result.read_text())["digest"], done.stdout.count('"stage": "pack"')

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert len({digest for digest, _ in answers}) == 1
    assert sum(packs > 0 for _, packs in answers) == 1
    assert not list(store.root.glob("*.building")) and not list(store.root.glob(".*.building"))


def test_a_killed_build_leaves_nothing_in_the_way(store: Store, tmp_path: Path) -> None:
    made = plan("msgpack", "click")
    source = tmp_path / "plan.json"
    source.write_bytes(made.to_json())
    child = subprocess.Popen(build_command(source, store.root, tmp_path / "result"), stdout=subprocess.PIPE)
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["stage"] == "verify":
            break
    child.kill()
    child.wait()
    child.stdout.close()
    assert store.find(made.key) is None
    assert build(made, store).key == made.key
    assert not list(store.root.glob(".*.building"))


# ---------------------------------------------------------------- it cannot be made


@pytest.fixture
def venv(tmp_path: Path) -> Callable[..., Path]:
    """A venv with small distributions of our own, each a dict of file to content."""

    def make(**distributions: dict[str, str]) -> Path:
        root = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True, timeout=120)
        site = next(root.glob("lib/python3*/site-packages"))
        for name, files in distributions.items():
            info = f"{name}-1.0.dist-info"
            files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}
            for path, content in files.items():
                (site / path).parent.mkdir(parents=True, exist_ok=True)
                (site / path).write_text(content)
            (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
        return root

    return make


def test_a_missing_import_is_named(store: Store, venv: Callable[..., Path]) -> None:
    root = venv(outer={"outer.py": "import inner_one\n"}, inner={"inner_one.py": ""})
    with pytest.raises(BuildFailed) as failure:
        build(plan("outer", verify=("outer",), python=root / "bin" / "python"), store)
    assert failure.value.module == "inner_one"
    assert "inner_one" in failure.value.hint
    assert store.all() == []


def test_what_fails_on_the_client_too_is_a_warning(store: Store, venv: Callable[..., Path]) -> None:
    root = venv(broken={"broken.py": "raise RuntimeError('no device here')\n"})
    made = plan("broken", verify=("broken",), python=root / "bin" / "python")
    built = build(made, store)
    assert "no device here" in built.warnings[0]


def _fields(value: object) -> dict[str, str]:
    return {name: getattr(value, name) for name in type(value).__slots__}  # type: ignore[attr-defined]


def test_what_is_taken_from_outside_is_refused(
    store: Store, venv: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "sly.py").write_text("")
    code = f"import sys\nsys.path.append({str(tmp_path / 'elsewhere')!r})\nimport sly\n"
    root = venv(cunning={"cunning.py": code})
    with pytest.raises(BuildFailed, match=r"sly.*outside"):
        build(plan("cunning", verify=("cunning",), python=root / "bin" / "python"), store)


def test_an_unreadable_file_is_named(
    store: Store, venv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = venv(secret={"secret.py": "", "more.py": ""})
    made = plan("secret", python=root / "bin" / "python")
    hidden = next(root.glob("lib/python3*/site-packages/secret.py"))
    if os.geteuid() == 0:  # root may read everything: a folder in its place is as unreadable
        pytest.skip("root may read every file")
    hidden.chmod(0)
    with pytest.raises(BuildFailed, match=r"cannot read .*secret\.py"):
        build(made, store)


def test_what_was_removed_by_hand_and_broken_links_do_not_matter(
    store: Store, venv: Callable[..., Path], tmp_path: Path
) -> None:
    root = venv(holey={"holey.py": "x = 1\n", "gone.py": "", "link.py": ""})
    site = next(root.glob("lib/python3*/site-packages"))
    made = plan("holey", verify=("holey",), python=root / "bin" / "python")
    (site / "gone.py").unlink()
    (site / "link.py").unlink()
    (site / "link.py").symlink_to("nowhere.py")
    prefix = unpacked(build(made, store), tmp_path / "node")
    assert run(prefix, "import holey; print(holey.x)") == "1"


def test_a_distribution_without_record_is_taken_by_its_top_level(
    store: Store, venv: Callable[..., Path], tmp_path: Path
) -> None:
    root = venv(
        old={
            "old_one/__init__.py": "x = 2\n",
            "old_one/data.txt": "d",
            "old-1.0.dist-info/top_level.txt": "old_one\n",
        }
    )
    site = next(root.glob("lib/python3*/site-packages"))
    (site / "old-1.0.dist-info" / "RECORD").unlink()
    prefix = unpacked(
        build(plan("old", verify=("old_one",), python=root / "bin" / "python"), store), tmp_path / "node"
    )
    assert (
        run(
            prefix,
            "import old_one, pathlib; print(old_one.x, (pathlib.Path(old_one.__file__).parent / 'data.txt').read_text())",
        )
        == "2 d"
    )


def test_an_interpreter_that_is_not_there(store: Store) -> None:
    made = plan()
    assert made.interpreter is not None
    away = type(made.interpreter)(**{**_fields(made.interpreter), "executable": "/nowhere/python"})
    with pytest.raises(BuildFailed, match="/nowhere/python of login-7") as failure:
        build(Plan("python", "away", away, host="login-7"), store)
    assert failure.value.hint


def test_a_part_of_the_standard_library_that_is_left_out(store: Store) -> None:
    with pytest.raises(BuildFailed, match="idlelib") as failure:
        build(plan(verify=("idlelib.config",)), store)
    assert "left out" in failure.value.hint


def test_a_full_disk_is_said_in_words(store: Store, tmp_path: Path) -> None:
    source, result = tmp_path / "plan.json", tmp_path / "result.json"
    source.write_bytes(plan("msgpack").to_json())
    limit = ["bash", "-c", 'ulimit -f 4096; exec "$@"', "limit"]  # 4 MiB a file: the tarball does not fit
    code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import runpy, sys; sys.argv[0] = 'build'; runpy.run_module('lfm_manager.environments.build', run_name='__main__')"
    command = build_command(source, store.root, result)
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    subprocess.run(
        [*limit, sys.executable, "-c", code, *command[4:]], capture_output=True, check=False, timeout=300
    )
    error = json.loads(result.read_text())["error"]
    assert "File too large" in error["reason"] or "no space" in error["reason"]
    assert not list(store.root.glob(".*.building"))


# ---------------------------------------------------------------- explicit ones


def test_a_ready_tarball_is_tried_and_taken(store: Store, tmp_path: Path) -> None:
    source = build(plan("msgpack"), store)
    copy = tmp_path / "mine.tar.zst"
    shutil.copyfile(source.path, copy)
    built = build(Plan("tarball", "ready", None, tarball=str(copy), verify=("msgpack",)), store)
    assert (built.digest, built.python, built.libc) == (source.digest, source.python, source.libc)
    with pytest.raises(BuildFailed, match="numpy_that_is_not"):
        build(Plan("tarball", "ready-2", None, tarball=str(copy), verify=("numpy_that_is_not",)), store)
    with pytest.raises(BuildFailed, match="no tarball"):
        build(Plan("tarball", "ready-3", None, tarball=str(tmp_path / "absent.tar.zst")), store)
    copy.write_bytes(copy.read_bytes()[:5000])
    with pytest.raises(BuildFailed, match=f"{copy}: .*{copy.name} cannot be unpacked"):
        build(Plan("tarball", "ready-4", None, tarball=str(copy)), store)


def wheel(folder: Path, name: str, requires: tuple[str, ...] = ()) -> None:
    import zipfile

    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    files = {
        f"{name}.py": f"name = {name!r}\n" + "".join(f"import {r}\n" for r in requires),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as out:
        for path, content in files.items():
            out.writestr(path, content)
        out.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


def test_a_requirements_list_is_installed_for_the_clients_python(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, str(tmp_path / "wheels"))
    for name in ("PIP_NO_INDEX", "UV_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "wanted_lfm", ("needed_lfm",))
    wheel(tmp_path / "wheels", "needed_lfm")
    python = plan().interpreter
    built = build(
        Plan("spec", "listed", python, verify=("wanted_lfm",), specification=("wanted_lfm>=1",)), store
    )
    assert {d["name"]: d["why"] for d in built.distributions} == {
        "wanted-lfm": "asked for",
        "needed-lfm": "required by what was asked for",
    }
    assert (
        run(unpacked(built, tmp_path / "node"), "import wanted_lfm; print(wanted_lfm.name)") == "wanted_lfm"
    )
    with pytest.raises(BuildFailed, match="absent_lfm") as failure:
        build(Plan("spec", "unknown", python, specification=("absent_lfm",)), store)
    assert failure.value.hint


def test_a_plan_of_an_unknown_kind(store: Store) -> None:
    with pytest.raises(BuildFailed, match="kind 'docker'"):
        build(Plan("docker", "k", None), store)


def test_what_modules_do_as_they_are_tried(tmp_path: Path) -> None:
    """There are those that read the source of whoever imports them, and those that say what they lack in their own words."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "curious.py").write_text("import inspect\nassert inspect.stack(3)\n")
    (site / "lacking.py").write_text("try:\n    import partner\nexcept ImportError:\n    raise RuntimeError('I need\\n\\nmore')\n")
    found = look(tmp_path / "venv" / "bin" / "python", ("curious", "lacking"), ())
    (failure,) = found.failed
    assert (failure["module"], failure["missing"], failure["behind"]) == ("lacking", None, "partner")
    assert failure["text"] == "I need more"
    assert not [path for path in found.outside if "inside" in path]

"""Environments for people with a conda prefix, against a real channel made of what is installed here."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import lfm
from lfm.function.plan import Distribution, Interpreter, Plan
from lfm_manager.environments import distributions, interpreter
from lfm_manager.environments.child import build
from lfm_manager.environments.packages import Package, Packages
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.store import Built, Store

rattler = pytest.importorskip("rattler")
pytest.importorskip("conda_package_handling")

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

PLACEHOLDER = "/opt/placeholder" + "_placeholder" * 19 + "_place"
NAMES = ["msgpack", "click", "packaging", "cloudpickle"]


def this_python() -> Interpreter:
    described = interpreter.describe(sys.executable)
    return Interpreter(
        executable=described.executable, version=described.version, prefix=sys.prefix, base_prefix=sys.base_prefix,
        soabi=described.soabi, machine=described.machine, libc=described.libc,
        fingerprint=hashlib.sha256(described.executable.encode()).hexdigest(),
    )  # fmt: skip


def installed(name: str) -> Distribution:
    found = importlib.metadata.distribution(name)
    metadata = str(found._path)  # type: ignore[attr-defined]
    return Distribution(
        name=re.sub(r"[-_.]+", "-", name).lower(), version=found.version, why="a test",
        location=str(Path(metadata).parent), metadata=metadata, fingerprint=hashlib.sha256(metadata.encode()).hexdigest(),
    )  # fmt: skip


# ---------------------------------------------------------------- a channel


def conda_package(channel: Path, package: Package, depends: list[str], subdir: str = "linux-64") -> None:
    """Our cache's packages have conda's shape: all that is missing is who they depend on."""
    from conda_package_handling import api

    index = {
        "name": package.name, "version": package.version, "build": package.build.replace("-", "_"),
        "build_number": 0, "depends": depends, "subdir": subdir, "timestamp": 1_700_000_000_000,
    }  # fmt: skip
    index |= {"noarch": "python"} if subdir == "noarch" else {"platform": "linux", "arch": "x86_64"}
    (package.path / "info" / "index.json").write_text(json.dumps(index))
    name = f"{package.name}-{package.version}-{index['build']}.conda"
    files = ["info/index.json", "info/paths.json", *[entry.path for entry in package.entries]]
    for extra in ("info/link.json",):
        if (package.path / extra).exists():
            files.append(extra)
    folder = channel / subdir
    folder.mkdir(parents=True, exist_ok=True)
    api.create(str(package.path), files, name, out_folder=str(folder), compression_level=1)


def probe_package(packages: Packages) -> Package:
    """A package whose text and binary both hold the prefix, as many of conda's do."""
    with packages.make("prefix-probe", "1.0", "0") as draft:
        draft.write("share/probe.txt", f"prefix={PLACEHOLDER}\n".encode())
        draft.write("share/probe.bin", b"\0\1" + f"{PLACEHOLDER}/share".encode() + b"\0\2\3")
        draft.write("bin/probe", f"#!{PLACEHOLDER}/bin/python\nprint('probed')\n".encode(), executable=True)
        package = draft.finish()
    paths = json.loads((package.path / "info" / "paths.json").read_text())
    for path in paths["paths"]:
        mode = "binary" if path["_path"].endswith(".bin") else "text"
        path |= {"prefix_placeholder": PLACEHOLDER, "file_mode": mode}
    (package.path / "info" / "paths.json").write_text(json.dumps(paths))
    return package


def noarch_package(packages: Packages) -> Package:
    """A pure Python package that is linked below whatever site-packages there is, with an entry point."""
    with packages.make("noarch-probe", "2.0", "py_0") as draft:
        draft.write(
            "site-packages/noarch_probe/__init__.py", b"import msgpack\ndef main():\n    print('noarch')\n"
        )
        draft.write(
            "site-packages/noarch_probe-2.0.dist-info/METADATA",
            b"Metadata-Version: 2.1\nName: noarch-probe\nVersion: 2.0\n",
        )
        package = draft.finish()
    link = {
        "noarch": {"type": "python", "entry_points": ["noarch-probe = noarch_probe:main"]},
        "package_metadata_version": 1,
    }
    (package.path / "info" / "link.json").write_text(json.dumps(link))
    return package


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("channel")
    packages = Packages(tmp_path_factory.mktemp("source-packages"))
    python = this_python()
    described = interpreter.describe(python.executable)
    minor = described.minor
    conda_package(root, interpreter.package(packages, python, described), [])
    for name in NAMES:
        made = distributions.package(packages, installed(name), sys.prefix, described)
        conda_package(root, made, [f"python {minor}.*"])
    conda_package(root, probe_package(packages), [])
    noarch = noarch_package(packages)
    index = noarch.path / "info" / "index.json"
    conda_package(root, noarch, ["python", "msgpack"], subdir="noarch")
    assert json.loads(index.read_text())["subdir"] == "noarch"
    in_child(
        "import asyncio, pathlib, sys; from rattler.index import index_fs; asyncio.run(index_fs(pathlib.Path(sys.argv[1])))",
        root,
    )
    return root


def in_child(code: str, *arguments: object) -> None:
    """py-rattler may abort an interpreter that ends: not ours."""
    code += "\nimport os\nos._exit(0)\n"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, timeout=300)


@dataclass(frozen=True)
class Prefix:
    path: Path
    cache: Path

    def plan(self, *names: str, verify: tuple[str, ...] = ()) -> Plan:
        found = {}
        for meta in (self.path / "conda-meta").glob("*.json"):
            raw = json.loads(meta.read_text())
            found[raw["name"]] = Distribution(
                raw["name"],
                raw["version"],
                "a test",
                str(self.path),
                str(meta),
                hashlib.sha256(meta.read_bytes()).hexdigest(),
            )
        chosen = tuple(found[name] for name in names)
        key = hashlib.sha256("".join(d.fingerprint for d in chosen).encode()).hexdigest()
        described = interpreter.describe(str(self.path / "bin" / "python"))
        python = Interpreter(
            described.executable, described.version, str(self.path), str(self.path), described.soabi,
            described.machine, described.libc, "0" * 64,
        )  # fmt: skip
        return Plan("conda", key, python, distributions=chosen, verify=verify)


@pytest.fixture(scope="module")
def prefix(channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Prefix:
    """What `conda create` would have made; the channel is out of reach afterwards."""
    root = tmp_path_factory.mktemp("client")
    made = Prefix(root / "env", root / "pkgs")
    copy = shutil.copytree(channel, root / "channel")
    in_child(
        "import asyncio, sys\n"
        "from rattler import Channel, Gateway, VirtualPackage, install, solve\n"
        "async def main(channel, prefix, cache, *specs):\n"
        "    records = await solve(sources=[Channel(channel)], specs=specs, gateway=Gateway(cache_dir=cache + '-repodata'),\n"
        "                          virtual_packages=VirtualPackage.detect())\n"
        "    await install(records, target_prefix=prefix, cache_dir=cache, show_progress=False)\n"
        "asyncio.run(main(*sys.argv[1:]))\n",
        copy.as_uri(), made.path, made.cache, "python", *NAMES, "prefix-probe", "noarch-probe",
    )  # fmt: skip
    shutil.rmtree(copy)
    return made


def unpacked(built: Built, tmp_path: Path) -> Path:
    into = tmp_path / "node"
    subprocess.run(
        [sys.executable, "-m", "lfm_worker.shell.unpack", built.path, built.digest, into],
        check=True,
        timeout=300,
    )
    return into / built.digest


def run(prefix: Path, code: str) -> str:
    done = subprocess.run(
        [prefix / "bin" / "python", "-I", "-B", "-c", code],
        env={},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LFM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_subset_of_a_conda_prefix_is_cloned_without_its_channel(
    prefix: Prefix, cache: Path, tmp_path: Path
) -> None:
    plan = prefix.plan("python", "msgpack", "noarch-probe", verify=("msgpack", "noarch_probe"))
    built = build(plan, Store())
    assert [d["name"] for d in built.distributions] == ["python", "msgpack", "noarch-probe"]
    there = unpacked(built, tmp_path)
    assert (
        run(there, "import noarch_probe, msgpack, sys; print(msgpack.__file__.startswith(sys.prefix))")
        == "True"
    )
    assert run(there, "import importlib.util as u; print(u.find_spec('click'))") == "None"
    script = subprocess.run(
        [there / "bin" / "noarch-probe"],
        env={"PATH": f"{there}/bin:{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert script.stdout == "noarch\n"


def test_bytecode_is_shipped_for_packages_that_conda_compiles_on_installing(
    prefix: Prefix, cache: Path, tmp_path: Path
) -> None:
    there = unpacked(build(prefix.plan("python", "noarch-probe", "msgpack"), Store()), tmp_path)
    cached = run(there, "import noarch_probe, os; print(os.path.exists(noarch_probe.__cached__))")
    assert cached == "True"


def test_prefixes_in_texts_and_binaries_are_mended_on_the_node(
    prefix: Prefix, cache: Path, tmp_path: Path
) -> None:
    there = unpacked(build(prefix.plan("python", "prefix-probe"), Store()), tmp_path)
    assert (there / "share" / "probe.txt").read_text() == f"prefix={there}\n"
    assert f"{there}/share\0".encode() in (there / "share" / "probe.bin").read_bytes()
    script = subprocess.run(
        [there / "bin" / "probe"],
        env={"PATH": f"{there}/bin:{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert script.stdout == "probed\n"


def test_the_clients_prefix_and_package_cache_stay_as_they_are(prefix: Prefix, cache: Path) -> None:
    def state() -> dict[str, bytes]:
        files = [p for root in (prefix.path, prefix.cache) for p in root.rglob("*probe*") if p.is_file()]
        return {str(path): path.read_bytes() for path in files}

    before = state()
    build(prefix.plan("python", "prefix-probe"), Store())
    assert state() == before


def test_a_specification_is_solved_against_its_channels(channel: Path, cache: Path, tmp_path: Path) -> None:
    plan = Plan(
        "spec",
        "spec-1",
        None,
        verify=("noarch_probe",),
        specification=("noarch-probe >=1",),
        channels=(channel.as_uri(),),
    )
    built = build(plan, Store())
    whys = {d["name"]: d["why"] for d in built.distributions}
    assert whys["msgpack"] == "required by noarch-probe"
    assert whys["noarch-probe"].startswith("asked for")
    assert run(unpacked(built, tmp_path), "import noarch_probe; noarch_probe.main()") == "noarch"


def test_what_no_channel_has_is_said_in_words(channel: Path, cache: Path) -> None:
    plan = Plan(
        "spec", "spec-2", None, specification=("msgpack", "no-such-thing >=9"), channels=(channel.as_uri(),)
    )
    with pytest.raises(BuildFailed, match="no-such-thing") as failure:
        build(plan, Store())
    assert "\n" not in failure.value.reason
    assert failure.value.hint


def test_a_prefix_whose_package_cache_was_cleaned(prefix: Prefix, cache: Path, tmp_path: Path) -> None:
    plan = prefix.plan("python", "msgpack", "prefix-probe", "noarch-probe", verify=("noarch_probe",))
    away = prefix.cache.with_name("pkgs-away")
    prefix.cache.rename(away)
    try:
        built = build(replace(plan, key="cleaned"), Store())
    finally:
        away.rename(prefix.cache)
    assert [warning.split()[0] for warning in built.warnings] == ["prefix-probe"]
    there = unpacked(built, tmp_path)
    assert run(there, "import noarch_probe; noarch_probe.main()") == "noarch"
    assert (there / "share" / "probe.txt").read_text() == f"prefix={there}\n"
    for script, said in [("probe", "probed"), ("noarch-probe", "noarch")]:
        done = subprocess.run(
            [there / "bin" / script],
            env={"PATH": f"{there}/bin:{os.defpath}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == said


def test_what_is_found_from_inside_the_prefix_is_built(prefix: Prefix, cache: Path, tmp_path: Path) -> None:
    """A conda user's own Python finds the plan, as it does in a client."""
    (tmp_path / "model.py").write_text(
        "def f():\n    import noarch_probe\n    return noarch_probe.msgpack.packb(1)\n"
    )
    code = (
        "import sys\nfrom lfm.function.pack import Packer\nimport model\n"
        "packed = Packer().pack(model.f)\nassert packed.environment_name\n"
        "sys.stdout.buffer.write(packed.plan.to_json())\n"
    )
    sources = os.pathsep.join([str(Path(lfm.__file__).parent.parent), str(tmp_path)])
    done = subprocess.run(
        [prefix.path / "bin" / "python", "-B", "-c", code],
        env={"PYTHONPATH": sources},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    plan = Plan.from_json(done.stdout)
    assert plan.kind == "conda"
    built = build(plan, Store())
    assert {d["name"] for d in built.distributions} == {"python", "msgpack", "noarch-probe"}
    assert (
        run(unpacked(built, tmp_path), "import noarch_probe; print(noarch_probe.msgpack.packb(1))")
        == "b'\\x01'"
    )


def test_what_pip_added_to_a_conda_prefix_comes_along(prefix: Prefix, cache: Path, tmp_path: Path) -> None:
    site = next(prefix.path.glob("lib/python3*/site-packages"))
    info = site / "added-1.0.dist-info"
    info.mkdir()
    try:
        (site / "added.py").write_text("import msgpack\n")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
        (info / "RECORD").write_text(
            "added.py,,\nadded-1.0.dist-info/METADATA,,\nadded-1.0.dist-info/RECORD,,\n"
        )
        plan = prefix.plan("python", "msgpack", verify=("added",))
        added = Distribution("added", "1.0", "a test", str(site), str(info), "a" * 64)
        built = build(replace(plan, key="with-pip", distributions=(*plan.distributions, added)), Store())
        there = unpacked(built, tmp_path)
        assert run(there, "import added, importlib.metadata as m; print(m.version('added'))") == "1.0"
    finally:
        (site / "added.py").unlink()
        shutil.rmtree(info)

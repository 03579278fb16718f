"""Environments of conda packages: a subset of the client's prefix, or what a solver makes of a specification.

py-rattler (the extra ``conda``) solves, and links packages into a prefix of our own; conda-pack packs that.  A
subset needs no channel and no network.  What pip put into the client's prefix comes along as in any other
installation.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conda_pack.core import CondaEnv, File

from lfm.function.plan import Distribution, Plan
from lfm_manager.environments import archive, bytecode, distributions, elf, interpreter, wheels
from lfm_manager.environments.assembled import Assembled, forbidden_folders
from lfm_manager.environments.packages import Packages
from lfm_manager.environments.places import conda_root
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.progress import Report
from lfm_manager.environments.verify import Client

if TYPE_CHECKING:
    from rattler import PrefixRecord, RepoDataRecord

PIP = "pip:"  # before a requirement in a specification that is otherwise conda's


def from_prefix(plan: Plan, work: Path, packages: Packages, report: Report) -> Assembled:
    """Kind "conda": these packages of the client's prefix, as it has them.

    Packages that are still in the client's package cache are linked from there, where they are as they were
    made, with placeholders of full length; others are taken from the prefix itself.
    """
    if plan.interpreter is None or not any(d.name == "python" for d in plan.distributions):
        raise BuildFailed("the plan holds no python", hint="activate a conda environment that has one")
    managed = [d for d in plan.distributions if d.metadata.endswith(".json")]
    metas = [(d, _record(d)) for d in managed]
    cached = [d for d, meta in metas if _is_cached(meta)] if _has_rattler() else []
    report("build", 0, len(managed), f"{len(managed)} conda packages")
    prefix = work / "prefix"
    files = _linked_files(cached, prefix) if cached else []
    for distribution, meta in metas:
        if distribution not in cached:
            files += _from_client(meta, Path(distribution.location), Path(distribution.metadata))
    report("build", len(managed), len(managed), "")
    files += _from_pip(plan, [d for d in plan.distributions if d not in managed], prefix, packages)
    held = tuple({"name": d.name, "version": d.version, "why": d.why} for d in plan.distributions)
    folders = forbidden_folders({str(prefix), *(d.location for d in managed)})
    made = _assembled(plan.interpreter.executable, work, prefix, files, held)
    stuck = [d.name for d, meta in metas if d not in cached and _has_binary_prefix(meta)]
    return replace(
        made, forbidden=folders, client=Client(plan.interpreter.executable), warnings=_stuck(stuck)
    )


def from_specification(plan: Plan, work: Path, packages: Packages, report: Report) -> Assembled:
    """Kind "spec" with channels: solve, fetch, link; then what pip is to add."""
    specs = [spec for spec in plan.specification if not spec.startswith(PIP)]
    requirements = [spec.removeprefix(PIP) for spec in plan.specification if spec.startswith(PIP)]
    if not any(_spec_name(spec) == "python" for spec in specs):
        minor = ".".join(plan.interpreter.version.split(".")[:2]) if plan.interpreter else ""
        specs.append(f"python {minor}.*" if minor else "python")
    report("solve", 0, 0, ", ".join(specs))
    records = _solved(specs, plan.channels)
    report("build", 0, len(records), f"{len(records)} conda packages")
    prefix = work / "prefix"  # absolute: it is written into files
    _link(prefix, records, [])
    report("build", len(records), len(records), "")
    if requirements:
        report("build", 0, 0, ", ".join(requirements))
        wheels.install(prefix / "bin" / "python", requirements, prefix)
    environment = CondaEnv.from_prefix(str(prefix), on_missing_cache="ignore", ignore_editable_packages=True)
    held = tuple(_whys(records, specs) + wheels.held_by_pip(prefix))
    made = _assembled(str(prefix / "bin" / "python"), work, prefix, environment.files, held)
    return replace(made, forbidden=forbidden_folders([str(prefix)]))


# ---------------------------------------------------------------- rattler


def _rattler() -> Any:
    try:
        import rattler
    except ImportError as error:
        raise BuildFailed(
            "conda environments need py-rattler, which is not installed", hint="pip install 'lfm[conda]'"
        ) from error
    return rattler


def _has_rattler() -> bool:
    return find_spec("rattler") is not None


def _linked_files(cached: Sequence[Distribution], prefix: Path) -> list[File]:
    """These packages linked from the client's package cache."""
    rattler = _rattler()
    try:
        records = [rattler.PrefixRecord.from_path(d.metadata) for d in cached]
    except Exception as error:
        raise BuildFailed(f"the client's prefix cannot be read: {_one_line(error)}") from error
    _link(prefix, records, _caches(records))
    environment = CondaEnv.from_prefix(str(prefix), on_missing_cache="ignore", ignore_editable_packages=True)
    return list(environment.files)


def _link(prefix: Path, records: Sequence[RepoDataRecord], caches: Sequence[Path]) -> None:
    """Make ``prefix`` of these packages; taken from ``caches`` where they are there, else fetched into our own."""
    rattler = _rattler()
    own = conda_root() / "pkgs"
    own.mkdir(parents=True, exist_ok=True)
    cache = rattler.PackageCache.new_layered([*caches, own])
    try:
        asyncio.run(
            rattler.install(list(records), target_prefix=prefix, package_cache=cache, show_progress=False)
        )
    except Exception as error:
        raise BuildFailed(
            f"the conda packages cannot be linked: {_one_line(error)}",
            hint="is the channel in reach, and is there space in the cache?",
        ) from error


def _caches(records: Sequence[PrefixRecord]) -> list[Path]:
    """The package caches that the client's prefix was linked from."""
    found: dict[Path, None] = {}
    for record in records:
        if (place := record.extracted_package_dir) and Path(place).is_dir():
            found[Path(place).parent] = None
    return list(found)


def _solved(specs: Sequence[str], channels: Sequence[str]) -> list[RepoDataRecord]:
    rattler = _rattler()
    store = conda_root() / "repodata"
    store.mkdir(parents=True, exist_ok=True)

    async def solve() -> list[RepoDataRecord]:
        solved: list[RepoDataRecord] = await rattler.solve(
            sources=[rattler.Channel(channel) for channel in channels],
            specs=specs,
            gateway=rattler.Gateway(cache_dir=store),
            virtual_packages=rattler.VirtualPackage.detect(),
        )
        return solved

    try:
        return asyncio.run(solve())
    except Exception as error:
        raise BuildFailed(
            f"no environment satisfies {', '.join(specs)} from {', '.join(channels)}: {_one_line(error)}",
            hint="change the environment.yml, or its channels",
        ) from error


def _whys(records: Sequence[RepoDataRecord], specs: Sequence[str]) -> list[dict[str, str]]:
    asked = {_spec_name(spec): spec for spec in specs}
    required: dict[str, str] = {}
    for record in records:
        for dependency in record.depends:
            required.setdefault(_spec_name(dependency), record.name.normalized)
    held = []
    for record in sorted(records, key=lambda record: record.name.normalized):
        name = record.name.normalized
        why = f"asked for as {asked[name]!r}" if name in asked else f"required by {required.get(name, '?')}"
        held.append({"name": name, "version": str(record.version), "why": why})
    return held


def _spec_name(spec: str) -> str:
    """``conda-forge::numpy >=1.26`` -> ``numpy``."""
    name = spec.rpartition("::")[2].strip()
    for index, character in enumerate(name):
        if character in " =<>!~[":
            return name[:index].lower()
    return name.lower()


# ---------------------------------------------------------------- putting it together


def _record(distribution: Distribution) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(Path(distribution.metadata).read_bytes())
        return record
    except (OSError, ValueError) as error:
        raise BuildFailed(f"the client's prefix cannot be read: {distribution.metadata}: {error}") from error


def _is_cached(meta: dict[str, Any]) -> bool:
    place = meta.get("extracted_package_dir") or (meta.get("link") or {}).get("source") or ""
    return bool(place) and Path(place, "info", "index.json").is_file()


def _from_client(meta: dict[str, Any], prefix: Path, record: Path) -> list[File]:
    """A package as it lies in the client's prefix: the paths in its files are the client's.

    Those in texts are mended on the node; those in binaries have no room to grow, and stay.
    """
    files = [File(str(record), f"conda-meta/{record.name}")]
    paths = (meta.get("paths_data") or {}).get("paths") or [{"_path": name} for name in meta.get("files", ())]
    for path in paths:
        target = path["_path"]
        source = prefix / target
        if target.endswith(".pyc") or not (source.exists() or source.is_symlink()):
            continue
        mode = "text" if path.get("prefix_placeholder") and path.get("file_mode") == "text" else None
        if mode is None and target.startswith("bin/") and not elf.is_elf(source):
            mode = "text"  # a console script: made when it was linked
        files.append(
            File(str(source), target, file_mode=mode, prefix_placeholder=str(prefix) if mode else None)
        )
    return files


def _has_binary_prefix(meta: dict[str, Any]) -> bool:
    paths = (meta.get("paths_data") or {}).get("paths") or ()
    return any(path.get("prefix_placeholder") and path.get("file_mode") == "binary" for path in paths)


def _stuck(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (
        f"{', '.join(names)} were taken from the prefix, because they are not in conda's package cache any more: "
        f"their binaries still name the prefix",
    )


def _from_pip(plan: Plan, others: Sequence[Distribution], prefix: Path, packages: Packages) -> list[File]:
    if not others or plan.interpreter is None:
        return []
    python = interpreter.describe(plan.interpreter.executable)
    made = [distributions.package(packages, d, plan.interpreter.prefix, python) for d in others]
    return archive.files_of(made, prefix)


def _assembled(
    executable: str, work: Path, prefix: Path, files: Sequence[File], held: tuple[dict[str, str], ...]
) -> Assembled:
    python = interpreter.describe(executable)
    compiled = _compiled(work / "bytecode", Path(executable), files, python.cache_tag)
    return Assembled(
        environment=CondaEnv(str(prefix), [*files, *compiled]),
        python=python.version,
        machine=python.machine,
        libc=f"glibc 2.{max([elf.glibc_needed(f.source) for f in files if elf.is_elf(f.source)], default=17)}",
        distributions=held,
    )


def _compiled(place: Path, python: Path, files: Sequence[File], cache_tag: str) -> list[File]:
    """Bytecode for the modules that came without: conda compiles at install time, and linking does not."""
    targets = {file.target for file in files}
    modules, made = [], []
    for file in files:
        folder, name = os.path.split(file.target)
        if not name.endswith(".py") or not folder.startswith("lib/python") or file.file_mode is not None:
            continue  # a text that names its prefix changes where it is unpacked: its bytecode would be stale
        target = f"{folder}/__pycache__/{name.removesuffix('.py')}.{cache_tag}.pyc"
        if target not in targets:
            modules.append(bytecode.Module(Path(file.source), None, place / target, file.target))
            made.append((place / target, target))
    bytecode.compile_all(python, modules)
    return [File(str(path), target) for path, target in made if path.exists()]


def _one_line(error: BaseException) -> str:
    lines = [line.strip(" │├└─╰") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line) or type(error).__name__

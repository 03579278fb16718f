"""What the smallest environment saves, and what it costs to make and unpack it, beside `tar` and `zstd -1`.

    python bench/environments.py                  numpy's, out of the environment that runs this
    python bench/environments.py --imports pandas --rounds 5
    python bench/environments.py --json

CPU is user and system time of all processes and threads.  Rounds of lfm and tar are interleaved; medians are
reported.  Needs the commands tar and zstd.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from lfm.function.pack import Packed, Packer
from lfm.protocol.resources import format_size
from lfm_manager.environments import archive, child
from lfm_manager.environments.build import assemble
from lfm_manager.environments.packages import Packages
from lfm_manager.environments.places import packages_root
from lfm_manager.environments.progress import silent
from lfm_manager.environments.store import Built, Store


def nothing() -> None:
    """Its imports are named from outside."""


def cpu_of(command: list[str] | str, **options: Any) -> float:
    """CPU seconds of a command with all that it starts; a text is for the shell."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, shell=isinstance(command, str), stdout=subprocess.DEVNULL, **options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def alternate(rounds: int, *contenders: Callable[[], float]) -> list[float]:
    """Each contender's median, their rounds interleaved."""
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for kept, contender in zip(times, contenders, strict=True):
            kept.append(contender())
    return [median(kept) for kept in times]


def packing(packed: Packed, prefix: Path, work: Path, rounds: int) -> list[float]:
    """lfm's pack of an environment whose packages are there, and tar's of the same files."""

    def ours() -> float:
        place = Path(tempfile.mkdtemp(dir=work))
        made = assemble(packed.plan, place, Packages(packages_root()), silent)
        start = time.process_time()
        archive.pack(made.environment, place / "out.tar.zst", silent)
        spent = time.process_time() - start
        shutil.rmtree(place)
        return spent

    def tar() -> float:
        return cpu_of(f"tar -C '{prefix}' -cf - . | zstd -1 -q > '{work}/tar.zst'")

    return alternate(rounds, ours, tar)


def unpack_command(built: Built, into: Path) -> list[str]:
    """What a worker runs."""
    return [sys.executable, "-P", "-m", "lfm_worker.shell.unpack", str(built.path), built.digest, str(into)]


def unpacking(built: Built, work: Path, rounds: int) -> list[float]:
    def fresh() -> Path:
        shutil.rmtree(work / "node", ignore_errors=True)
        (work / "node").mkdir()
        return work / "node"

    def ours() -> float:
        return cpu_of(unpack_command(built, fresh()))

    def tar() -> float:
        return cpu_of(f"zstd -dcq '{built.path}' | tar -C '{fresh()}' -xf -")

    return alternate(rounds, ours, tar)


def importing(built: Built, modules: list[str], work: Path, rounds: int) -> tuple[float, float]:
    """The first import in a fresh environment, and a later one."""
    firsts, laters = [], []
    for number in range(rounds):
        into = work / f"import-{number}"
        subprocess.run(unpack_command(built, into), check=True, stdout=subprocess.DEVNULL)
        command = [str(into / built.digest / "bin/python"), "-I", "-c", f"import {', '.join(modules)}"]
        firsts.append(cpu_of(command))
        laters.append(cpu_of(command))
        shutil.rmtree(into)
    return median(firsts), median(laters)


def whole_size() -> int:
    """Everything installed here, as tar and zstd -1 would send it; without the interpreter."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    counted = "".join(f" '{folder}'" for folder in sorted(folders))
    done = subprocess.run(f"tar -Pcf - {counted} | zstd -1 -T0 -q | wc -c", shell=True, check=True, capture_output=True)
    return int(done.stdout)


def measure(modules: list[str], rounds: int) -> dict[str, Any]:
    packed = Packer().pack(nothing, imports=modules)
    store = Store()
    built = child.build(packed.plan, store)
    start = time.perf_counter()
    assert store.find(packed.plan.key) is not None
    found_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="lfm-bench-") as name, contextlib.closing(store.hold(built.key)):
        work = Path(name)
        subprocess.run(unpack_command(built, work / "prefix"), check=True, stdout=subprocess.DEVNULL)
        pack_ours, pack_tar = packing(packed, work / "prefix" / built.digest, work, rounds)
        unpack_ours, unpack_tar = unpacking(built, work, rounds)
        first, later = importing(built, modules, work, rounds)
    return {
        "imports": modules, "processors": len(os.sched_getaffinity(0)), "bytes": built.bytes, "whole_bytes": whole_size(),
        "distributions": len(built.distributions), "whole_distributions": packed.plan.whole["distributions"],
        "unpacked_bytes": built.unpacked_bytes, "pack_s": pack_ours, "tar_zstd_s": pack_tar, "unpack_s": unpack_ours,
        "tar_x_s": unpack_tar, "first_import_s": first, "later_import_s": later,
        "found_again_s": found_s,
    }  # fmt: skip


def show(it: dict[str, Any]) -> None:
    share, large = it["bytes"] / it["whole_bytes"], it["whole_distributions"] >= 100
    rows: list[tuple[str, float, float | None]] = [  # what, measured, at most
        ("tarball, MB", it["bytes"] / 1e6, 45 if it["imports"] == ["numpy"] else None),
        ("of everything installed", share, 0.1 if large and it["imports"] == ["numpy"] else None),
        ("pack / tar | zstd -1, CPU", it["pack_s"] / it["tar_zstd_s"], 1.5),
        ("unpack / tar -x, CPU", it["unpack_s"] / it["tar_x_s"], 1.3),
        ("first import / later, CPU", it["first_import_s"] / it["later_import_s"], 1.1),
    ]
    print(f"{', '.join(it['imports'])}: {it['distributions']} of {it['whole_distributions']} distributions")
    print(f"everything installed, tar | zstd -1, without Python: {format_size(it['whole_bytes'])}")
    for name, value, most in rows:
        wanted = "" if most is None else f"   at most {most:g}{'' if value <= most else ': MISSED'}"
        print(f"  {name:<28} {value:9.2f}{wanted}")
    for name in ("pack_s", "tar_zstd_s", "unpack_s", "tar_x_s", "first_import_s", "later_import_s", "found_again_s"):
        print(f"  {name.removesuffix('_s').replace('_', ' '):<28} {it[name] * 1000:9.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imports", nargs="+", default=["numpy"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if missing := [tool for tool in ("tar", "zstd") if shutil.which(tool) is None]:
        parser.error(f"not installed: {', '.join(missing)}")
    measured = measure(chosen.imports, chosen.rounds)
    print(json.dumps(measured, indent=1)) if chosen.json else show(measured)


if __name__ == "__main__":
    main()

"""What is not done twice: a second function with the same needs, an edited module of one's own, a later session.

And what is: a file that was edited among the installed ones is packed as it is now.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from lfm.testing import LocalCluster
from lfm_manager.environments.places import packages_root

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
PATIENCE = 170.0
SCRIPT = """
    import importlib, json, pathlib, sys
    import lfm

    if __name__ == "__main__":
        sys.dont_write_bytecode = True
        import own

        def state():
            manager = ex.status().manager
            return manager["environments_built"], manager["blob_bytes_sent"]

        with lfm.Executor(cores=1) as ex:
            done = [(ex.submit(function).result(), *state()) for function in (own.f, own.g)]
            file = pathlib.Path(own.__file__)
            file.write_text(file.read_text().replace("first", "second"))
            importlib.reload(own)
            done.append((ex.submit(own.g).result(), *state()))
            print(json.dumps(done))
"""
OWN = """
    import installed_for_a_test

    def f():
        return installed_for_a_test.VALUE

    def g():
        return "first" + installed_for_a_test.VALUE
"""


def install(site: Path, value: str) -> Path:
    info = site / "installed_for_a_test-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: installed-for-a-test\nVersion: 1.0\n\n")
    module = site / "installed_for_a_test.py"
    module.write_text(f"VALUE = {value!r}\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(module.read_bytes()).digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"{module.name},sha256={digest},{module.stat().st_size}\n{info.name}/RECORD,,\n")
    return module


def session(tmp_path: Path) -> Any:
    """What the script's calls gave, and after each how many environments were built and bytes were sent."""
    (tmp_path / "own.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    environ = {k: v for k, v in os.environ.items() if k != "LFM_RUN"}
    done = subprocess.run(
        [sys.executable, "-B", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={**environ, "LFM_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path / "site-packages")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_built_or_sent_twice_and_an_edited_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    packages_root().mkdir(mode=0o700, parents=True, exist_ok=True)
    (tmp_path / "cache" / "packages").symlink_to(packages_root())  # the interpreter need not be made again
    one, other = secrets.token_hex(8), secrets.token_hex(8)
    installed = install(tmp_path / "site-packages", one)

    (f, built, sent), (g, built_2, sent_2), (edited, built_3, sent_3) = session(tmp_path)
    assert (f, g, edited) == (one, "first" + one, "second" + one)
    assert built == built_2 == built_3 == 1
    assert max(sent, sent_2, sent_3) <= 1 << 20  # overlays: the worker is here, and links its environment

    installed.write_text(f"VALUE = {other!r}\n")  # in place; neither folder nor RECORD has changed
    for builds in (1, 0):
        said = session(tmp_path)
        assert [value for value, _, _ in said] == [other, "first" + other, "second" + other]
        assert {built for _, built, _ in said} == {builds}


def test_a_second_function_with_the_same_needs_is_not_sent_its_environment_again(tmp_path: Path) -> None:
    with LocalCluster(workers=0) as cluster, cluster.executor() as ex:
        file = tmp_path / "worker.json"  # alone, as on another machine: the manager's own files are not beside it
        shutil.copy2(cluster.run / "worker.json", file)
        cluster.start_worker("--connect", str(file), "--work-dir", str(tmp_path / "node"))

        def state() -> tuple[int, int]:
            manager = ex.status().manager
            return manager["environments_built"], manager["blob_bytes_sent"]

        def one() -> int:
            return 1

        def two(x: int) -> int:
            return 2 * x

        assert ex.submit(one).result(PATIENCE) == 1
        built, sent = state()
        size = max(e["bytes"] for e in json.loads(cluster.command("status", "--json").stdout)["environments"])
        assert built <= 1 and size <= sent < 2 * size
        assert ex.submit(two, 3).result(PATIENCE) == 6
        built_2, sent_2 = state()
        assert " built " in cluster.command("env", "list", "--run", str(cluster.run)).stdout
        assert built_2 == built and sent_2 - sent <= 1 << 20

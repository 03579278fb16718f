"""The command ``lfm``: its commands are found late, its errors are one line."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from lfm.cli import main as module
from lfm.cli.common import Failure, fail
from lfm.cli.main import OTHERS, OWN, lfm


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(lfm, arguments)


def test_help_names_every_command_and_the_exit_codes(run):
    said = run("--help").output
    assert all(name in said for name in (*OWN, *OTHERS))
    assert "3 no manager" in said


@pytest.mark.parametrize("name", OWN)
def test_every_own_command_loads_and_explains_itself(run, name):
    done = run(name, "--help")
    assert done.exit_code == 0 and "Usage:" in done.output


def test_a_command_that_cannot_be_loaded_harms_no_other(run, monkeypatch):
    monkeypatch.setitem(module.OWN, "status", ("lfm.cli.nowhere:status", "Broken."))
    assert run("--help").exit_code == 0
    done = run("status", "--json", "anything")
    assert done.exit_code == 1
    assert "cannot be loaded: ModuleNotFoundError" in done.output and "Traceback" not in done.output
    assert run("tasks", "--help").exit_code == 0


def test_an_unknown_command_is_a_usage_error(run):
    assert run("nonsense").exit_code == 2


def test_no_manager_is_code_three(run, monkeypatch, tmp_path):
    monkeypatch.setenv("LFM_HOME", str(tmp_path))
    monkeypatch.delenv("LFM_RUN", raising=False)
    for command in (["status"], ["tasks"], ["explain", "x"], ["cancel", "all"], ["top"]):
        done = run(*command)
        assert done.exit_code == 3 and "lfm manager start" in done.output
    done = run("status", "--run", "nowhere")
    assert done.exit_code == 3 and "no run named 'nowhere'" in done.output


def test_a_failure_is_one_line_and_a_hint():
    @click.command()
    def broken():
        fail("it is broken", "mend it", 4)

    done = CliRunner().invoke(broken)
    assert done.exit_code == 4 and done.output == "lfm: it is broken\n     mend it\n"
    assert isinstance(Failure("x"), click.ClickException)


def test_neither_zmq_nor_rich_is_loaded_for_help():
    code = "import sys; from lfm.cli.main import lfm; lfm(['--help'], standalone_mode=False); print(sorted({'zmq', 'rich', 'cloudpickle'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

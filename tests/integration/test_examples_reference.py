"""The reference names every command and option that there is, and every option of a call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lfm.cli.main import lfm
from lfm.options import Options

REFERENCE = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text()
WORDS = set(re.findall(r"--?[\w-]+|\w+", " ".join(re.findall(r"`([^`\n]+)`", REFERENCE))))


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


ALL = [(path, command) for path, command in commands(lfm, "lfm") if not command.hidden]


@pytest.mark.parametrize("path, command", ALL, ids=[path for path, _ in ALL])
def test_command(path: str, command: click.Command) -> None:
    assert path.rpartition(" ")[2] in WORDS, "docs/reference.md does not name it"
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    missing = [p.opts[-1] for p in options if not WORDS & {*p.opts, *p.secondary_opts}]
    assert not missing, "docs/reference.md does not name them"


@pytest.mark.parametrize("name", [*Options.__dataclass_fields__])
def test_option_of_a_call(name: str) -> None:
    assert name in WORDS

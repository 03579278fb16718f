"""What waits to be said until what it rests on is written down."""

from __future__ import annotations

from pathlib import Path

from lfm.protocol import messages as m
from lfm.protocol.ids import FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Inline
from lfm.protocol.resources import Request, Resources
from lfm_manager.core import commands as c
from lfm_manager.shell.mail import Mail
from lfm_manager.shell.store import Store


class Post:
    """Where a listener's peers would be."""

    def __init__(self) -> None:
        self.said: list[tuple[PeerId, m.Message]] = []

    def send(self, peer: PeerId, message: m.Message) -> None:
        self.said.append((peer, message))

    def settle(self) -> None:
        pass

    def backlog(self, peer: PeerId) -> int:
        return 0


def run(task: str) -> m.Run:
    return m.Run(TaskId(task), 1, FunctionId("f"), Inline(b""), Resources(1.0))


def test_a_call_that_was_forgotten_before_it_left_ends_nobody(tmp_path: Path) -> None:
    """Its client died, and its worker left, in one round; or in many, while the run directory was full."""
    store, post = Store(tmp_path / "lfm.db"), Post()
    mail = Mail(post, store)  # type: ignore[arg-type]
    for name in ("s-1", "s-2", "s-3"):
        store.write(c.SaveTask("s", m.Submit(TaskId(name), FunctionId("f"), Inline(name.encode()), Request())))
        if name == "s-1":
            store.commit()
    for name in ("s-1", "s-2", "s-3"):
        mail.send(PeerId(1), c.RunKept(PeerId(1), run(name)))
    for name in ("s-1", "s-2"):  # one that was written down, and one that was not yet
        store.write(c.ForgetTask(TaskId(name)))
    store.forget()
    assert mail.deliver(0.0) and not mail.trouble
    assert post.said == [(PeerId(1), run("s-3").but(arguments=Inline(b"s-3")))]
    store.close()

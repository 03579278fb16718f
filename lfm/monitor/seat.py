"""One slot as the daemon sees it: the ends of its monitor's channels, the files that hold its call's output, its
directory, and the call that it has."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

from lfm.monitor import capture, sandbox, template, wire


class Job(NamedTuple):
    """A call as its slot holds it."""

    work: wire.Work
    limits: wire.Limits
    fds: tuple[int, ...] = ()
    hurry: bool = True


Key = tuple[str, str | None]  # a function: the file of its code, its overlay


class Seat:
    """One monitor, as seen from here."""

    def __init__(self, number: int, sandboxes: str) -> None:
        self.number = number
        self.control, self.its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, self.its_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self.channel.setblocking(False)
        self.files: list[int] = []
        try:
            for name in ("stdout", "stderr", "fault"):
                self.files.append(os.memfd_create(name, os.MFD_CLOEXEC))
        except OSError:  # no descriptors left: those that it got are others' again
            for fd in self.files:
                os.close(fd)
            raise
        self.ready = self.broken = False
        self.pid = 0
        self.job: Job | None = None
        self.began = 0.0
        self.watched = False
        self.box = sandbox.Box(sandboxes)
        self.over: Any = None  # what is to be told once its sandbox is removed
        self.result: wire.Result | None = None  # what the call has said
        self.leaving = 0  # the call that was over when it had said so, and whose process has not ended yet
        self.left_at = 0.0  # when it was over; 0: its process was told to end
        self.next: Job | None = None  # that waits for this end
        self.live = False  # what its call says is heard at once, not only at its end
        self.idle_since = 0.0
        self.key: Key | None = None  # of the function that its forker has loaded, or will have before its next call

    def offer(self, to: socket.socket) -> None:
        fds = [self.its_control.fileno(), self.its_channel.fileno(), *self.files]
        socket.send_fds(to, [template.SLOT.pack(template.NEW, self.number)], fds)
        self.its_control.close()
        self.its_channel.close()

    def output(self, *since: int) -> list[tuple[int, bytes]]:
        """Live: what the captures hold now from these positions on."""
        return [capture.since(file, position) for file, position in zip(self.files, since, strict=False)]

    def printed(self) -> tuple[bytes, bytes]:
        """What a call had printed whose monitor is gone."""
        out, err = (capture.read(file, os.lseek(file, 0, os.SEEK_CUR)) for file in self.files[:2])
        return out, err

    def take_output(self, report: wire.Report) -> tuple[bytes, bytes, bytes]:
        """All that an ended call has printed, and its dump if it crashed; the files are empty afterwards."""
        sizes = (report.stdout, report.stderr, report.fault)
        out, err = (capture.read(file, size) if size else b"" for file, size in zip(self.files, sizes[:2], strict=False))
        fault = os.pread(self.files[2], 16384, 0) if report.fault else b""
        for file, size in zip(self.files, sizes, strict=True):
            if size:
                os.ftruncate(file, 0)
        if fault:
            os.lseek(self.files[2], 0, os.SEEK_SET)  # where the next dump is written
        return out, err, fault

    def close(self) -> None:
        for end in (self.control, self.channel, self.its_control, self.its_channel):
            end.close()
        for fd in self.files:
            os.close(fd)
        self.files = []
        self.box.close()

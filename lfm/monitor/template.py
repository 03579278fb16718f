"""The template: one warm interpreter per environment, from which the monitors of all its slots are forked.

Imports what the functions will import, freezes the heap, and then only forks.  It must stay single-threaded:
a module whose import starts a thread is left to the calls, and the template starts over without it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any, NoReturn

from lfm.monitor import answer, call, cgroup, contain, linux, native, variables
from lfm.monitor.processes import Children, end_tree, reap
from lfm.monitor.slot import SIGNALS, Monitor

SLOT = struct.Struct("<BI")
NEW, GONE, READY = 1, 2, 3
REASON = 300  # characters: what is said of all that could not be loaded is one message
FDS = 5  # control, channel, stdout, stderr, fault


def main(control_fd: int, settings: str) -> NoReturn:
    """Entry point: ``settings`` is JSON (preload, skip, parent, session, clone, namespace, groups)."""
    config = json.loads(settings)
    if config["parent"]:
        linux.die_with_parent(config["parent"])
    linux.become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    control = socket.socket(fileno=control_fd)
    _leave_no_trace(config["runtime"])
    place, no_group = cgroup.find() if config["groups"] else (None, "not wanted")
    if place is not None:
        cgroup.sweep_dead(place)
    config["group"] = place
    hooks = linux.record_hooks()
    began = time.monotonic()
    skipped = _preload(control_fd, config)
    single = linux.threads() == 1
    config["clone"] = bool(config["clone"] and single and native.possible())
    config["namespace"] = bool(config["clone"] and config["namespace"] and contain.namespaces_work())
    variables.forget_tmpdir()
    variables.keep()
    call.rehearse(config["clone"])
    gc.collect()
    gc.disable()
    gc.freeze()
    gathered = linux.collapse_heap()
    told = {
        "fork": "clone" if config["clone"] else "os.fork",
        "containment": "namespace" if config["namespace"] else "subreaper",
        "cgroup": f"v{place.version}" if place else "",
        "cgroup_why": no_group,
        "single_threaded": single,
        "huge_pages": gathered,
        "skipped": skipped,
        "python": sys.version.split()[0],
        "preload_s": round(time.monotonic() - began, 3),
    }
    control.send(bytes([READY]) + json.dumps(told).encode())
    Template(control, config, hooks).run()


def _leave_no_trace(runtime: str) -> None:
    """A user's own ``lfm`` is not shadowed by ours: we stay alive through references, not through names."""
    sys.path[:] = [path for path in sys.path if path != runtime]
    for name in [name for name in sys.modules if name == "lfm" or name.startswith("lfm.")]:
        del sys.modules[name]
    sys.path_importer_cache.pop(runtime, None)


def _preload(control_fd: int, config: dict[str, Any]) -> dict[str, str]:
    skipped: dict[str, str] = dict(config["skip"])
    answer.runtime_lib = config["runtime"] + "/lib"
    sys.path.append(answer.runtime_lib)
    sys.dont_write_bytecode = False  # of what is ours; once for all templates
    try:
        importlib.import_module("cloudpickle")  # what is defined in a script travels by it
    except ImportError:
        pass
    sys.dont_write_bytecode = True
    for name in config["preload"]:
        if name in skipped:
            continue
        try:
            importlib.import_module(name)
        except BaseException as error:  # the call that needs it will tell its user
            skipped[name] = traceback.format_exception_only(error)[-1].strip()[:REASON]
            continue
        if trouble := _unfit():
            skipped[name] = trouble
            _start_over(control_fd, config | {"skip": skipped})
    sys.meta_path.append(answer.missed)  # what calls look for, not what packages do as they load
    return skipped


def _unfit() -> str:
    """Why this process may not be forked any more; empty while it may."""
    if linux.threads() > 1:
        return "its import starts a thread"
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/nvidia"):
                return "its import opens the GPU"
        except OSError:
            continue
    return ""


def _start_over(control_fd: int, config: dict[str, Any]) -> NoReturn:
    os.set_inheritable(control_fd, True)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(sys.executable, command(sys.executable, control_fd, config))


def command(python: str, control_fd: int, config: dict[str, Any]) -> list[str]:
    """How a template is started: isolated from the user's environment and site, unbuffered."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lfm.monitor.template import main; "
        "main(int(sys.argv[2]), sys.argv[3])"
    )
    return [python, "-I", "-B", "-u", "-c", code, config["runtime"], str(control_fd), json.dumps(config)]


class Template:
    """Forks a monitor for every slot that the daemon asks for, and sweeps up after one that died."""

    def __init__(self, control: socket.socket, config: dict[str, Any], hooks: list[linux.Hook]) -> None:
        self.hooks = hooks
        self.control = control
        self.config = config
        self.monitors: dict[int, int] = {}  # pid -> slot
        self.children = Children()

    def run(self) -> NoReturn:
        import select

        signals = linux.signalfd(SIGNALS)
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        poll.register(signals, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == signals:
                    pending = os.read(signals, 128 * 8)
                    if any(pending[at] == signal.SIGTERM for at in range(0, len(pending), 128)):
                        self._leave()
                    self._sweep()
                else:
                    self._new_slot(signals)

    def _new_slot(self, signals: int) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.control, 64, FDS)
        except ConnectionResetError:  # as it is told where something that was sent to the daemon lay there unread
            data, fds = b"", []
        if not data:
            self._leave()
        _, slot = SLOT.unpack(data)
        for fd in fds:
            os.set_inheritable(fd, False)  # by what a call executes
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or no more processes for us: the calls in the other slots go on
            for fd in fds:
                os.close(fd)
            self._say_gone(slot, (error.errno or 1) << 8)
            return
        if pid == 0:
            try:
                linux.die_with_parent(parent, signal.SIGTERM)
                self.control.close()
                os.close(signals)
                ends = [socket.socket(fileno=fd) for fd in fds[:2]]
                Monitor(ends[0], ends[1], fds[2:], self.config | {"slot": slot}, self.hooks).run()
            except BaseException:  # it must not fall back into the template's loop
                traceback.print_exc()
            finally:
                os._exit(1)
        self.monitors[pid] = slot
        for fd in fds:
            os.close(fd)

    def _sweep(self) -> None:
        gone = []
        for one in reap():
            slot = self.monitors.pop(one.pid, None)
            if slot is not None:
                gone.append((slot, one.status))
        if set(self.children.pids()) - self.monitors.keys():
            for one in end_tree(self.children, self.monitors):
                slot = self.monitors.pop(one.pid, None)
                if slot is not None:
                    gone.append((slot, one.status))
        for slot, status in gone:
            self._sweep_groups(f"{slot}.")
            self._say_gone(slot, status)

    def _say_gone(self, slot: int, status: int) -> None:
        try:
            self.control.send(SLOT.pack(GONE, slot) + struct.pack("<i", status))
        except OSError:  # the daemon has closed everything, and a monitor was the first to see it
            self._leave()

    def _leave(self) -> NoReturn:
        """The daemon is gone: monitors have seen the end of their own channels, and clean up; then we."""
        end = time.monotonic() + 2
        while self.monitors and time.monotonic() < end:
            for one in reap():
                self.monitors.pop(one.pid, None)
            time.sleep(0.002)
        end_tree(self.children, ())
        self._sweep_groups("")
        os._exit(0)

    def _sweep_groups(self, name: str) -> None:
        """Remove the control groups of a monitor that could not; of all, if no slot is named."""
        if place := self.config["group"]:
            cgroup.sweep(place, f"{cgroup.PREFIX}{os.getpid()}.{name}")


__all__ = ["FDS", "GONE", "NEW", "READY", "SLOT", "call", "command", "main"]

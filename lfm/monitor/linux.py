"""What Python does not offer of Linux: prctl, signalfd, namespaces and a bare clone.  Knows nothing of calls.

Everything here is called from the main thread of a single-threaded process.  ``PyDLL`` keeps the GIL held,
so that no thread switch can happen around a clone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_GET_TID_ADDRESS = 40

CLONE_NEWNS = 0x00020000
CLONE_PARENT = 0x00008000
CLONE_PARENT_SETTID = 0x00100000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

WALL = 0x40000000  # wait for every child, whatever signal its end sends
MADV_COLLAPSE = 25
HUGE = 2 << 20

Hook = tuple[Callable[[], object] | None, Callable[[], object] | None]  # before, and after in the child

_SYS_CLONE = 56  # x86-64, where its arguments are (flags, stack, parent tid, child tid, tls)
_SIGSET_BYTES = 128

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.madvise.argtypes = _libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        raise _fail("prctl")


def become_subreaper() -> None:
    """Orphans among our descendants become our children, not init's."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends; leave at once if that is already so."""
    prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def signalfd(signals: Iterable[int]) -> int:
    """A non-blocking descriptor that is readable while one of the (blocked) signals is pending."""
    mask = 0
    for number in signals:
        mask |= 1 << (number - 1)
    buffer = ctypes.create_string_buffer(mask.to_bytes(_SIGSET_BYTES, sys.byteorder), _SIGSET_BYTES)
    fd: int = _libc.signalfd(-1, buffer, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise _fail("signalfd")
    return fd


def unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise _fail("unshare")


def mount(source: str, target: str, kind: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        raise _fail("mount")


def threads() -> int:
    """Threads of this process, also those that Python does not know of."""
    return len(os.listdir("/proc/self/task"))


def can_clone() -> bool:
    """Whether a bare clone is known to be sound here: glibc on x86-64, a GIL, an ordinary build."""
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and sys.implementation.name == "cpython"
        and not free_threaded
        and _is_glibc()
        and sys.maxsize > 2**32
    )


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (OSError, ValueError):  # another C library does not know the question
        return False


def tid_address() -> int:
    """Where glibc keeps this thread's id; the kernel must renew it in a cloned child.  0 if unknown."""
    found = ctypes.c_ulong()
    if _libc.prctl(PR_GET_TID_ADDRESS, ctypes.addressof(found), 0, 0, 0) == 0 and found.value:
        return found.value
    _libc.pthread_self.restype = ctypes.c_ulong
    start, tid = _libc.pthread_self(), os.getpid()
    words = (ctypes.c_int * 256).from_address(start)
    return next((start + 4 * i for i in range(128, 256) if words[i] == tid), 0)


def cloner(flags: int, end_signal: int) -> Callable[[], int]:
    """A function that clones this process: the child's pid in the parent, 0 in the child.

    It skips Python's and glibc's at-fork handlers: that is what makes it cheap, and why ``can_clone()``
    and ``threads() == 1`` must hold.
    """
    address = tid_address()
    if not address:
        raise OSError("where glibc keeps the thread id is unknown")
    number, all_flags = _SYS_CLONE, flags | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | end_signal
    call = ctypes.PyDLL(None, use_errno=True).syscall  # untyped: small numbers pass without an object for each
    call.restype, where = ctypes.c_long, ctypes.c_void_p(address)

    def clone() -> int:
        pid: int = call(number, all_flags, 0, 0, where)
        if pid < 0:
            raise _fail("clone")
        return pid

    return clone


def collapse_heap() -> int:
    """Gather this process's private memory in huge pages, which a fork copies at the price of one page each;
    how many bytes were gathered, 0 where the kernel will not."""
    done = 0
    with open("/proc/self/maps") as file:
        lines = file.read().splitlines()
    for line in lines:
        words = line.split()
        if words[1] != "rw-p" or (len(words) > 5 and words[5] != "[heap]"):
            continue
        start, end = (int(one, 16) for one in words[0].split("-"))
        start, end = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        for at in range(start, end, HUGE):
            if _libc.madvise(at, HUGE, MADV_COLLAPSE) == 0:
                done += HUGE
    return done


def make_executable(address: int, size: int) -> bool:
    """Whether these pages may be read and run from now on, and written no more."""
    done: int = _libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC)
    return done == 0


def bare_prctl() -> Callable[..., int]:
    """``prctl`` as the C library has it, for where every page touched counts."""
    call: Callable[..., int] = ctypes.PyDLL(None).prctl
    return call


def bare_exit() -> Callable[[int], int]:
    """``_exit``, found already: else every child links it anew."""
    call: Callable[[int], int] = ctypes.PyDLL(None)._exit
    return call


def record_hooks() -> list[Hook]:
    """From now on remember what third parties register with ``os.register_at_fork``: a bare clone does not run
    it, so whoever clones must.  The standard library's own handlers are known and covered."""
    hooks: list[Hook] = []
    register = os.register_at_fork

    def remember(
        *,
        before: Callable[[], object] | None = None,
        after_in_child: Callable[[], object] | None = None,
        after_in_parent: Callable[[], object] | None = None,
    ) -> None:
        given = {"before": before, "after_in_child": after_in_child, "after_in_parent": after_in_parent}
        register(**{name: hook for name, hook in given.items() if hook is not None})
        caller = str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0]
        if caller not in sys.stdlib_module_names and (before or after_in_child):
            hooks.append((before, after_in_child))

    os.register_at_fork = remember
    return hooks

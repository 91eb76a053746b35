"""Runs work in a child process, and fails or kills it at one system call: ptrace(2), x86-64.

Only the calls that reach files and connections are counted, whatever thread makes them; an
application cannot do anything about the others.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenstore import TokenStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KILL = "killed"
Fault = int | str  # an errno, or KILL

_E = errno
_NAMES: Mapping[int, tuple[str, tuple[int, ...]]] = {
    0: ("read", (_E.EIO,)),
    1: ("write", (_E.ENOSPC, _E.EIO)),
    3: ("close", (_E.EIO,)),
    4: ("stat", (_E.EACCES,)),
    5: ("fstat", (_E.EIO,)),
    6: ("lstat", (_E.EACCES,)),
    8: ("lseek", (_E.EIO,)),
    17: ("pread64", (_E.EIO,)),
    18: ("pwrite64", (_E.ENOSPC, _E.EIO)),
    20: ("writev", (_E.ENOSPC, _E.EIO)),
    21: ("access", (_E.EACCES,)),
    41: ("socket", (_E.EMFILE,)),
    42: ("connect", (_E.ECONNREFUSED, _E.ENETUNREACH)),
    44: ("sendto", (_E.EPIPE, _E.ECONNRESET)),
    45: ("recvfrom", (_E.ECONNRESET,)),
    54: ("setsockopt", (_E.ENOPROTOOPT,)),
    72: ("fcntl", (_E.ENOLCK, _E.EIO)),
    73: ("flock", (_E.ENOLCK, _E.EINTR)),
    74: ("fsync", (_E.EIO, _E.ENOSPC)),
    75: ("fdatasync", (_E.EIO,)),
    77: ("ftruncate", (_E.EIO, _E.ENOSPC)),
    82: ("rename", (_E.EIO, _E.ENOSPC)),
    83: ("mkdir", (_E.ENOSPC, _E.EACCES)),
    84: ("rmdir", (_E.EIO,)),
    86: ("link", (_E.EPERM, _E.EIO)),
    87: ("unlink", (_E.EIO,)),
    89: ("readlink", (_E.EIO,)),
    90: ("chmod", (_E.EPERM, _E.EIO)),
    91: ("fchmod", (_E.EPERM, _E.EIO)),
    93: ("fchown", (_E.EPERM,)),
    137: ("statfs", (_E.EIO,)),
    138: ("fstatfs", (_E.EIO,)),
    217: ("getdents64", (_E.EIO,)),
    257: ("openat", (_E.EMFILE, _E.EACCES, _E.EIO)),
    258: ("mkdirat", (_E.ENOSPC,)),
    262: ("newfstatat", (_E.EACCES,)),
    263: ("unlinkat", (_E.EIO,)),
    264: ("renameat", (_E.EIO,)),
    265: ("linkat", (_E.EPERM, _E.EIO)),
    268: ("fchmodat", (_E.EPERM,)),
    285: ("fallocate", (_E.ENOSPC,)),
    316: ("renameat2", (_E.EINVAL, _E.EIO)),
    332: ("statx", (_E.EACCES,)),
}

_LOOKS = {"read", "stat", "fstat", "lstat", "lseek", "pread64", "access", "readlink", "statfs"}
_LOOKS |= {"fstatfs", "getdents64", "newfstatat", "statx", "close"}

_NAME_PATHS = {"stat": 0, "lstat": 0, "readlink": 0, "newfstatat": 1, "openat": 1, "statx": 1}

_TRACEME, _POKEUSER, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x420E
_OPTIONS = 0x1 | 0x8 | 0x100000  # tell system calls apart; follow threads; die with the tracer
_ENTRY, _EXIT = 1, 2
_RAX, _ORIG_RAX = 10 * 8, 15 * 8  # offsets in `struct user`
_ALL_THREADS = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80


class _Info(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("_", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 7),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def can_inject() -> bool:
    """Return whether this machine can do what this module needs."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    try:
        return run(lambda: None).outcome == "done"
    except OSError:
        return False


@dataclass
class Run:
    """What became of the work.

    Attributes:
        calls: The names of the calls that were counted.
        outcome: ``done``, ``killed``, or the name of the error that it raised.
        value: What it returned, as JSON gives it back; or the error's message.
        is_typed: Whether the error is one of tokenstore's.
    """

    calls: list[str] = field(default_factory=list)
    outcome: str = KILL
    value: Any = None
    is_typed: bool = True


def faults_of(call: str) -> tuple[Fault, ...]:
    """Return what may go wrong at a call.

    To be killed before a call that only looks is to be killed after the call before it.
    """
    errors = next(errors for name, errors in _NAMES.values() if name == call)
    return errors if call in _LOOKS else (KILL, *errors)


def run(
    work: Callable[[], object], *, at: int | None = None, fault: Fault = KILL, seconds: int = 60
) -> Run:
    """Do *work* in a child process, with a fault at one of its calls.

    Args:
        work: What to do.
        at: The number of the call, from 0.
        fault: An errno that it fails with; or KILL, which ends the process before the call.
        seconds: The child ends after this time, as if it was killed by SIGALRM.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _child(work, writing, seconds)
    os.close(writing)
    try:
        result = _Tracer(child, at, fault).follow()
        with os.fdopen(reading, closefd=False) as pipe:
            told = pipe.read()
    finally:
        os.close(reading)
    if told:
        result.outcome, result.value, result.is_typed = json.loads(told)
    return result


def _child(work: Callable[[], object], writing: int, seconds: int) -> None:
    """Do the work between two stops, so that only its calls are counted."""
    told: tuple[str, object, bool] = (KILL, None, True)
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        _ptrace(_TRACEME)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            told = "done", work(), True
        except BaseException as error:  # noqa: BLE001 - told to the parent
            told = type(error).__name__, str(error), isinstance(error, TokenStoreError)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.write(writing, json.dumps(told).encode())
    finally:
        os._exit(0)


class _Tracer:
    def __init__(self, child: int, at: int | None, fault: Fault) -> None:
        self._child, self._at, self._fault = child, at, fault
        self._run = Run()
        self._is_counting = False
        self._failing: dict[int, int] = {}  # by thread: what it gets instead of a result
        self._is_new = True
        self._opening: set[int] = set()  # threads that are opening something in /proc
        self._of_proc: set[int] = set()  # descriptors

    def follow(self) -> Run:
        while True:
            thread, status = os.waitpid(-1 if not self._is_new else self._child, _ALL_THREADS)
            if not os.WIFSTOPPED(status):
                if thread == self._child:
                    return self._run
                continue
            deliver = 0
            if os.WSTOPSIG(status) == _SYSCALL_STOP:
                self._at_call(thread)
            elif os.WSTOPSIG(status) == signal.SIGSTOP:
                self._at_stop(thread)
            elif os.WSTOPSIG(status) != signal.SIGTRAP:
                deliver = os.WSTOPSIG(status)
            _ptrace(_SYSCALL, thread, 0, deliver, may_be_gone=True)

    def _at_stop(self, thread: int) -> None:
        if thread != self._child:
            return  # a new thread begins with one
        if self._is_new:
            _ptrace(_SETOPTIONS, thread, 0, _OPTIONS)
        self._is_counting, self._is_new = self._is_new, False

    def _at_call(self, thread: int) -> None:
        info = _Info()
        size = ctypes.sizeof(info)
        if not _ptrace(_GET_SYSCALL_INFO, thread, size, ctypes.addressof(info), may_be_gone=True):
            return
        if info.op == _EXIT:
            if number := self._failing.pop(thread, 0):
                _ptrace(_POKEUSER, thread, _RAX, -number & (2**64 - 1))
            if thread in self._opening:
                self._opening.remove(thread)
                self._of_proc.add(info.nr)  # here, the result
            return
        if not self._is_counting or info.nr not in _NAMES:
            return
        name, _ = _NAMES[info.nr]
        if self._is_of_proc(thread, name, info.arguments):
            return  # as many as the machine has processes
        self._run.calls.append(name)
        if len(self._run.calls) - 1 == self._at:
            self._fail(thread, name, info.arguments)

    def _fail(self, thread: int, name: str, arguments: Sequence[int]) -> None:
        if isinstance(self._fault, str):
            os.kill(self._child, signal.SIGKILL)
        elif not self._is_unlock(name, arguments):  # which does not fail; SQLite relies on it
            self._failing[thread] = self._fault
            if name != "close":  # which gives the descriptor back even if it fails
                _ptrace(_POKEUSER, thread, _ORIG_RAX, 2**64 - 1)

    def _is_of_proc(self, thread: int, name: str, arguments: Sequence[int]) -> bool:
        """Return whether a call concerns /proc, by path or by descriptor."""
        place = _NAME_PATHS.get(name)
        if place is None or not self._begins_with(b"/proc/", arguments[place]):
            is_open = arguments[0] in self._of_proc
            if name == "close":
                self._of_proc.discard(arguments[0])
            return is_open
        if name == "openat":
            self._opening.add(thread)
        return True

    def _is_unlock(self, name: str, arguments: Sequence[int]) -> bool:
        if name == "flock":
            return bool(arguments[1] & fcntl.LOCK_UN)
        unlock = fcntl.F_UNLCK.to_bytes(2, sys.byteorder)  # the first field of struct flock
        is_lock = name == "fcntl" and arguments[1] in {fcntl.F_SETLK, fcntl.F_SETLKW}
        return is_lock and self._begins_with(unlock, arguments[2])

    def _begins_with(self, prefix: bytes, address: int) -> bool:
        with Path(f"/proc/{self._child}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(len(prefix)) == prefix


def _ptrace(
    request: int, thread: int = 0, address: int = 0, data: int = 0, *, may_be_gone: bool = False
) -> Any:
    ctypes.set_errno(0)
    result = _libc.ptrace(request, thread, address, data)
    number = ctypes.get_errno()
    if result == -1 and number:
        if may_be_gone and number == errno.ESRCH:
            return 0
        raise OSError(number, os.strerror(number))
    return result

"""Stores that something is wrong with, and operations on them, each in a process of its own.

Run as a program, this imports everything once, makes one store after the other with its fault, and
forks a process for each operation.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.refreshes import Told
from tests.helpers.stores import LATER, NOBODY, unmeasured
from tokenstore import TokenManager, TokenRepository
from tokenstore.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
SECONDS = 20  # for one operation; only one that hangs takes so long
NEW = {
    "access_token": "CANARY-access-dora",
    "refresh_token": "CANARY-refresh-dora",
    "id_token": "CANARY-id-dora",
    "expires_at": LATER,
}


# -- what can be wrong ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is wrong with a store.

    Attributes:
        make: Makes it so, given the path of the database.
        store: What to begin with: ``closed``; ``delete``, which is closed and in that mode;
            ``killed``, whose process died, so that its log is there; ``another`` is a second one.
        nobody: Whether the operation runs as another user, to whom all of it belongs.
        space: Bytes that are free on the disk that it is on; None: enough.
        largest: Bytes that any file may have; None: as many as it likes.
        is_open: Whether the store is open when it happens.
    """

    make: Callable[[Path], object] = lambda _: None
    store: str = "closed"
    nobody: bool = False
    space: int | None = None
    largest: int | None = None
    is_open: bool = False


def file_mode(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


def directory_mode(mode: int) -> Callable[[Path], None]:
    return lambda path: path.parent.chmod(mode)


def cut(size: float, suffix: str = "") -> Callable[[Path], None]:
    """Cut the file, or one beside it, to so many bytes or to this part of its pages."""

    def make(path: Path) -> None:
        file = beside(path, suffix)
        part = int(file.stat().st_size * size) // PAGE * PAGE
        os.truncate(file, part if 0 < size < 1 else int(size))

    return make


def overwrite(offset: int, data: bytes, suffix: str = "") -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with beside(path, suffix).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return make


def change(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Change stored text, wherever it is in the file."""

    def make(path: Path) -> None:
        found = path.read_bytes()
        assert old in found
        assert len(old) == len(new)
        path.write_bytes(found.replace(old, new))

    return make


def root_page(table: str) -> Callable[[Path], None]:
    """Overwrite the page that a table, or an index, begins with."""

    def make(path: Path) -> None:
        database = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        [(page,)] = database.execute(query, [table])
        database.close()
        overwrite((page - 1) * PAGE, b"\xff" * PAGE)(path)

    return make


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in the place of the database; no lock of it is left either."""

    def fault(path: Path) -> None:
        for found in path.parent.glob("tokens.db*"):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        other = path.with_name("other")
        make(other)
        if other.is_file():
            other.chmod(0o644)
        if os.path.lexists(other):
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    beside(other, suffix).replace(beside(path, suffix))

    return fault


def content(data: bytes) -> Callable[[Path], None]:
    return instead(lambda other: other.write_bytes(data))


def another_application(*statements: str, killed: bool = False) -> Callable[[Path], None]:
    """Put a database of another application there; if that was killed, its log is there too."""

    def fill(other: Path) -> None:
        connection = sqlite3.connect(other, isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        if killed:
            os._exit(0)
        connection.close()

    def make(other: Path) -> None:
        if not killed:
            fill(other)
            return
        child = os.fork()
        if not child:
            fill(other)
        assert os.waitpid(child, 0)[1] == 0

    return instead(make)


WAL = "PRAGMA journal_mode = WAL"
NOTES = (
    "CREATE TABLE accounts (account_name TEXT, extra TEXT)",
    "INSERT INTO accounts VALUES ('mine', 'CANARY-of-theirs')",
)
ALEMBIC = (
    "PRAGMA application_id = 1234",
    "CREATE TABLE alembic_version (version_num TEXT)",
    "INSERT INTO alembic_version VALUES ('abc')",
)


def symlink(path: Path) -> None:
    path.replace(path.with_name("elsewhere.db"))
    path.symlink_to("elsewhere.db")


def parent_is_a_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("mine")


def symlink_to_another(path: Path) -> None:
    path.unlink()
    path.symlink_to("another.db")


def another_store(path: Path) -> None:
    """Put a backup there, as somebody does who does not know that the store is in use."""
    path.with_name("another.db").replace(path)


FAULTS = {
    # -- what may not be written, or not even be read
    "read-only file": Fault(file_mode(0o400), nobody=True),
    "read-only file, delete mode": Fault(file_mode(0o400), "delete", nobody=True),
    "read-only directory": Fault(directory_mode(0o500), nobody=True),
    "read-only directory, delete mode": Fault(directory_mode(0o500), "delete", nobody=True),
    "unreadable file": Fault(file_mode(0o000), nobody=True),
    "unreachable directory": Fault(directory_mode(0o000), nobody=True),
    "file of another owner": Fault(lambda path: os.chown(path, NOBODY, NOBODY)),
    # -- a disk without space
    "full disk": Fault(space=0),
    "full disk, delete mode": Fault(store="delete", space=0),
    "disk with space for readers": Fault(space=8 * PAGE),
    "files that may not grow": Fault(store="delete", largest=1),
    # -- cut short
    "cut to nothing": Fault(cut(0)),
    "cut to nothing beside its log": Fault(cut(0), "killed"),
    "cut to half a page": Fault(cut(PAGE / 2)),
    "cut to half its pages": Fault(cut(0.5)),
    "log cut to nothing": Fault(cut(0, "-wal"), "killed"),
    "log cut to half a page": Fault(cut(PAGE / 2, "-wal"), "killed"),
    "log cut to half its pages": Fault(cut(0.5, "-wal"), "killed"),
    "log of garbage": Fault(overwrite(0, b"\xff" * PAGE, "-wal"), "killed"),
    "index of the log of garbage": Fault(overwrite(0, b"\xff" * PAGE, "-shm"), "killed"),
    # -- bits flipped
    "header: magic": Fault(overwrite(3, b"h")),
    "header: page size": Fault(overwrite(16, b"\x20")),
    "header: write version": Fault(overwrite(18, b"\x06")),
    "header: read version": Fault(overwrite(19, b"\x06")),
    "header: schema format": Fault(overwrite(47, b"\x05")),
    "header: encoding": Fault(overwrite(59, b"\x03")),
    "header: application": Fault(overwrite(68, b"u")),
    "page of the schema": Fault(overwrite(100, b"\xff" * (PAGE - 100))),
    "text of the schema": Fault(change(b"CREATE TABLE accounts", b"CREATE TABLE accou\xffts")),
    "word of the schema": Fault(change(b"VARCHAR(512) NOT NULL", b"VARCHAR(512) \xceOT NULL")),
    "column of the schema": Fault(change(b"refresh_token TEXT", b"refresh_to\xffen TEXT")),
    "page of accounts": Fault(root_page("accounts")),
    "page of names": Fault(root_page("sqlite_autoindex_accounts_1")),
    "page of refreshes": Fault(root_page("refreshes")),
    "page of the revision": Fault(root_page("tokenstore_alembic_version")),
    "access token: no UTF-8": Fault(change(b"CANARY-access-alice", b"CANARY-access-\xfflice")),
    "refresh token: no UTF-8": Fault(change(b"CANARY-refresh-alice", b"CANARY-refresh-\xfflice")),
    "extra: no UTF-8": Fault(change(b"CANARY-id-alice", b"CANARY-id-\xfflice")),
    "extra: no JSON": Fault(change(b'"CANARY-id-alice"', b'"CANARY-id-alice ')),
    "failure: no UTF-8": Fault(change(b'{"verdict"', b'{"verd\xffct"')),
    "failure: no JSON": Fault(change(b'{"verdict"', b'["verdict"')),
    "failure: another key": Fault(change(b'{"verdict"', b'{"verdicu"')),
    # -- no store at all
    "JSON": Fault(content(json.dumps(NEW).encode() * 50)),
    "text": Fault(content(b"{}")),
    "zeros": Fault(content(bytes(PAGE + 1))),
    "magic alone": Fault(content(b"SQLite format 3\0")),
    "another application": Fault(another_application(*NOTES)),
    "another application with alembic": Fault(another_application(*NOTES, *ALEMBIC)),
    "another application that was killed": Fault(another_application(WAL, *NOTES, killed=True)),
    "directory": Fault(instead(Path.mkdir)),
    "FIFO": Fault(instead(os.mkfifo)),
    "symlink": Fault(symlink),
    "dangling symlink": Fault(instead(lambda other: other.symlink_to("nothing.db"))),
    "no directory": Fault(lambda path: shutil.rmtree(path.parent)),
    "file for a directory": Fault(parent_is_a_file),
    # -- while it is open
    "vanished": Fault(instead(lambda _: None), is_open=True),
    "replaced by a store": Fault(another_store, is_open=True),
    "replaced by another application": Fault(another_application(*NOTES), is_open=True),
    "replaced by garbage": Fault(content(b"\xffCANARY" * 1000), is_open=True),
    "replaced by a directory": Fault(instead(Path.mkdir), is_open=True),
    "replaced by a symlink": Fault(symlink_to_another, is_open=True),
}


# -- what is done with them -----------------------------------------------------------------------


def transaction(repository: TokenRepository) -> None:
    with repository.transaction():
        repository.save("dora", NEW)
        repository.delete("alice")


Repository = TokenRepository
Manager = partial(TokenManager, cache_ttl=0)
CALLS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], object]]] = {
    "load": (Repository, lambda store: store.load("alice")),
    "accounts": (Repository, lambda store: [account.name for account in store.accounts()]),
    "get_valid_token": (Manager, lambda store: store.get_valid_token("alice")),
    "save": (Repository, lambda store: store.save("alice", NEW)),
    "save, delete mode": (
        partial(Repository, journal_mode="delete"),
        lambda store: store.save("alice", NEW),
    ),
    "delete": (Repository, lambda store: store.delete("alice")),
    "delete, upgrade": (partial(Repository, upgrade=True), lambda store: store.delete("alice")),
    "transaction": (Repository, transaction),
    "get_valid_token, due": (Manager, lambda store: store.get_valid_token("bob")),
    "refresh_token": (Manager, lambda store: store.refresh_token("bob")["access_token"]),
}
COMMANDS = {
    "tokenstore status": ["--json"],
    "tokenstore token": ["alice"],
    "tokenstore history": ["--json"],
    "tokenstore export": ["new", "--json"],
    "tokenstore db current": [],
    "tokenstore db check": [],
    "tokenstore token, due": ["bob"],
    "tokenstore refresh": ["bob", "--json"],
    "tokenstore delete": ["alice"],
    "tokenstore import": ["old", "--json"],
    "tokenstore db upgrade": [],
}


@dataclass
class Outcome:
    """What came of an operation.

    Attributes:
        code: The exit code of a command; of a call, 1 if it raised.
        before: What was there before, by name.
        after: What was there afterwards.
        out: What a command printed to stdout.
        err: What it printed to stderr.
        result: What a call returned.
        error: What it raised: the names of its classes, its text, path and number.
        again: The same, of the same call made once more.
        end: What was there after that.
        shown: All that can be seen of what it raised and logged.
        posts: How many requests reached the provider.
    """

    code: int
    before: dict[str, str]
    after: dict[str, str]
    out: str = ""
    err: str = ""
    result: Any = None
    error: dict[str, Any] | None = None
    again: dict[str, Any] | None = None
    end: dict[str, str] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    posts: int = 0


def perform(place: Path, stores: Path, fault: Fault, operation: str) -> dict[str, Any]:
    """Make a store and its fault; do the operation in a process of its own; tell what came."""
    path = place / "store" / "tokens.db"
    path.parent.mkdir()
    if fault.space is not None:
        mount(path.parent)
    try:
        shutil.copytree(stores / fault.store, path.parent, dirs_exist_ok=True)
        if fault.is_open:
            shutil.copy(stores / "another" / "tokens.db", path.with_name("another.db"))
        else:
            fault.make(path)
        if fault.nobody and os.getuid() == 0:
            for changed in (path.parent, *place.rglob("*"), place):
                os.chown(changed, NOBODY, NOBODY, follow_symlinks=False)
        if fault.space is not None:
            fill(path.parent, fault.space)
        before = look(place)
        if operation in COMMANDS or fault.nobody or fault.largest is not None:
            told = in_a_process(place, path, fault, operation)
        else:
            told = run(path, fault, operation)
        return {"before": before, "after": look(place), **told}
    finally:
        if fault.space is not None:
            unmount(path.parent)


def in_a_process(place: Path, path: Path, fault: Fault, operation: str) -> dict[str, Any]:
    pipes = [os.pipe() for _ in range(3)]
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        os.chdir(place)
        limit(fault)
        told = command(path, operation) if operation in COMMANDS else run(path, fault, operation)
        os.write(pipes[2][1], json.dumps(told).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(told["code"])
    texts = []
    for read_end, write_end in pipes:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as file:
            texts.append(file.read().decode(errors="replace"))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err, report = texts
    return {**json.loads(report or "{}"), "code": code, "out": out, "err": err}


def limit(fault: Fault) -> None:
    """Take from this process what the fault says."""
    if fault.largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest, fault.largest))
    if fault.nobody and os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def run(path: Path, fault: Fault, operation: str) -> dict[str, Any]:
    """Make a call; tell what it returned or raised."""
    make, call = CALLS[operation]
    told: dict[str, Any] = {}
    with Told() as log:
        store = make(path)
        if fault.is_open:
            getattr(store, "save" if isinstance(store, Repository) else "save_tokens")("frank", NEW)
            fault.make(path)
            told["before"] = look(path.parent.parent)
        told |= attempt(store, call)
        if fault.is_open:
            told["after"] = look(path.parent.parent)
            told["again"] = attempt(store, call)
            told["shown"] += told["again"]["shown"]
        store.close()
        if fault.is_open:
            told["end"] = look(path.parent.parent)
    told["shown"] += [repr(vars(record)) + record.getMessage() for record in log.records]
    return told


def attempt(store: Any, call: Callable[[Any], object]) -> dict[str, Any]:
    try:
        return {"code": 0, "result": call(store), "shown": []}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        facts = {
            "types": [cls.__name__ for cls in type(error).__mro__],
            "text": str(error),
            "path": getattr(error, "path", None),
        }
        return {
            "code": 1,
            "error": facts,
            "shown": [*traceback.format_exception(error), *seen(error)],
        }


def command(path: Path, operation: str) -> dict[str, Any]:
    """Be the command; tell its exit code, as the interpreter would at its end."""
    words = operation.partition(",")[0].split()
    sys.argv = [words[0], "--database", str(path), *words[1:], *COMMANDS[operation]]
    try:
        main()
    except SystemExit as end:
        return {"code": int(end.code or 0)}
    except BaseException:  # noqa: BLE001 - the interpreter does the same
        traceback.print_exc()
    return {"code": 1}


def seen(error: BaseException) -> list[str]:
    """Return all that can be seen of an error and of those that it came from."""
    texts = []
    pending: list[BaseException | None] = [error]
    known: list[BaseException] = []
    while pending:
        cause = pending.pop()
        if cause is not None and cause not in known:
            known.append(cause)
            texts += [str(cause), repr(cause), repr(cause.args), repr(vars(cause))]
            pending += [cause.__cause__, cause.__context__]
    return texts


def look(place: Path) -> dict[str, str]:
    """Return what is there: of each name the kind, mode and owner, and which content since when."""
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        told = f"{stat.filemode(status.st_mode)} {status.st_uid}"
        if not path.is_dir():
            told += f" {status.st_ino} {status.st_mtime_ns}"
        if path.is_symlink():
            told += f" {path.readlink()}"
        elif path.is_file() and os.access(path, os.R_OK):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            told += f" {status.st_size} {digest}"
        found[str(path.relative_to(place))] = told
    return found


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# -- a small disk ---------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _require(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def have_mounts_of_our_own() -> None:
    """Let nobody else see what this process mounts."""
    _require(_libc.unshare(0x20000))  # CLONE_NEWNS
    _require(_libc.mount(b"none", b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE


def mount(directory: Path) -> None:
    """Mount a disk of 1 MiB."""
    _require(_libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, b"size=1m,mode=0700"))


def unmount(directory: Path) -> None:
    _require(_libc.umount(os.fsencode(directory)))


def fill(directory: Path, space: int) -> None:
    """Leave so many bytes on the disk that *directory* is on."""
    with (directory / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(PAGE)):
            pass
    os.truncate(directory / "filler", (directory / "filler").stat().st_size - space)


# -- one after the other --------------------------------------------------------------------------


class Runner:
    """A process that makes faults and forks operations, one after the other.

    Args:
        stores: The directory with the stores to begin with.
        secret: The secret of the client of the provider ``test``.
    """

    def __init__(self, stores: Path, secret: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, stores],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=unmeasured({**os.environ, "TEST_CLIENT_SECRET": secret}),
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with self._process:
            assert self._process.wait(SECONDS) == 0

    def __call__(self, place: Path, fault: str, operation: str) -> Outcome:
        """Do one operation on a store with a fault, below the directory *place*."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(place), fault, operation]) + "\n")
        self._process.stdin.flush()
        return Outcome(**self._told())

    def _told(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


# Everything is imported before the first fork: another user may not read where the code is.
IMPORTED_LATE = (
    "alembic.command",
    "argparse",
    "difflib",
    "encodings.idna",
    "filelock",
    "platformdirs",
    "requests",
    "sqlalchemy.dialects.sqlite",
    "tokenstore.cli.accounts",
    "tokenstore.cli.completion",
    "tokenstore.cli.db",
    "tokenstore.cli.demo",
    "tokenstore.cli.refresh",
    "tokenstore.cli.login",
    "tokenstore.cli.status",
    "tokenstore.cli.maintenance",
    "tokenstore.cli.transfer",
    "tokenstore.lifecycle.bulk",
    "tokenstore.jsonfiles",
    "tokenstore.migrate",
    "tokenstore.oauth.client",
    "tomllib",
)


def serve(stores: Path) -> None:
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    gc.freeze()
    with suppress(OSError):  # only root may
        have_mounts_of_our_own()
    for line in sys.stdin:
        place, fault, operation = json.loads(line)
        os.environ["TOKENSTORE_PROVIDERS"] = str(Path(place, "providers.toml"))
        tell(perform(Path(place), stores, FAULTS[fault], operation))


def tell(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

"""What the tests of storage share: token sets, other processes, a look at files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenstore.models.tokens import TokenSet
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore import TokenRepository
    from tokenstore.storage.journal import Refresh

ROOT = Path(__file__).resolve().parents[2]
LATER = 4_000_000_000.0
SOON = 60.0  # seconds; nothing here takes so long unless it hangs
NOBODY = 65534

PRELUDE = r"""
import os, signal, sys, threading
from pathlib import Path
from tokenstore.errors import *

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # one piece, whoever else writes

def wait():
    sys.stdin.readline()

def tokens(number=0):
    return {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "expires_at": 4_000_000_000.0,
    }

def become_nobody():
    # Nobody may not read where the code is, so what is imported late is imported now.
    import alembic.command, argparse, difflib, filelock, platformdirs, requests, tomllib
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

def forked(count, work):
    '''Run work(number) in so many children, which begin together; tell how each ended.'''
    read, write = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the last one is there
            try:
                work(number)
            except BaseException as error:
                tell(number, type(error).__name__, error)
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(read)
    os.close(write)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""


def tokens(number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "expires_at": LATER,
        **more,
    }


def begin(repository: TokenRepository, name: str = "alice") -> Refresh:
    record = repository.record(name)
    assert record is not None
    return repository.journal.begin(record, provider="p", reason="due", longest=SOON)


def becomes(tokens: TokenSet) -> Callable[[TokenSet], TokenSet]:
    """Return an outcome of a refresh that makes *tokens* of whatever is stored."""
    return lambda _: tokens


def token_set(number: int) -> TokenSet:
    return TokenSet(
        access_token=f"access-{number}", refresh_token=f"refresh-{number}", expires_at=LATER
    )


IMPORTS = {  # what takes long to import is imported where it is used
    "TokenRepository": "from tokenstore import TokenRepository\n",
    "migrate": "from tokenstore import migrate\n",
    "become_nobody": "import alembic.command, tokenstore.storage.sqlite.database\n",
}


def command(code: str, *arguments: object) -> list[str]:
    imports = "".join(line for name, line in IMPORTS.items() if name in code)
    whole = PRELUDE + imports + code
    return [sys.executable, "-P", "-W", "error", "-c", whole, *map(str, arguments)]


def unmeasured(environment: dict[str, str]) -> dict[str, str]:
    """Return *environment* without what starts coverage in every process.

    Nobody may write its data, and it opens files of its own.
    """
    return {n: v for n, v in environment.items() if not n.startswith("COVERAGE_")}


def python(code: str, *arguments: object, **options: Any) -> str:
    """Run *code* after the prelude in a process of its own; return what it printed."""
    if any(word in code for word in ("become_nobody()", "setresuid", "addaudithook", "RLIMIT")):
        options["env"] = unmeasured(dict(options.get("env", os.environ)))
    done = subprocess.run(
        command(code, *arguments),
        check=False,
        capture_output=True,
        text=True,
        **{"timeout": SOON, **options},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return str(done.stdout)


class Process:
    """A process that runs *code* and is told, line by line, when to go on."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            command(code, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(SOON)

    def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(SOON)


@contextmanager
def raw(path: Path, **options: Any) -> Iterator[sqlite3.Connection]:
    """Look into a database past tokenstore."""
    connection = sqlite3.connect(path, isolation_level=None, **options)
    try:
        yield connection
    finally:
        connection.close()


def is_sound(path: Path) -> bool:
    """Tell whether SQLite finds the whole file in order."""
    with raw(path) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def journal_mode_of(path: Path) -> str:
    with raw(path) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def modes(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): mode(p) for p in sorted(directory.rglob("*"))}


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def holding(directory: Path, secret: str) -> list[str]:
    """Return the names of the files in which the bytes of *secret* are."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path.name for path in files if secret.encode() in path.read_bytes()]


def open_files(path: Path) -> int:
    """Return how many descriptors this process has of *path* and its companions."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += str(descriptor.readlink()).startswith(str(path))
        except FileNotFoundError:
            continue
    return found


def copy_checkout(directory: Path) -> Path:
    """Copy what a checkout consists of."""
    copy = directory / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tokenstore", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("alembic.ini", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).exists():  # an unpacked sdist has no .gitignore
            shutil.copy(ROOT / name, copy / name)
    return copy


NEXT = f"{int(REVISION) + 1:04}"
NEXT_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{REVISION}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("accounts", recreate="always") as batch:
        batch.add_column(sa.Column("note", sa.Text()))


def downgrade() -> None:
    with op.batch_alter_table("accounts", recreate="always") as batch:
        batch.drop_column("note")
"""


def newer_checkout(directory: Path, migration: str = NEXT_MIGRATION) -> Path:
    """Copy the checkout and give it one migration more."""
    copy = copy_checkout(directory)
    (copy / "migrations" / "versions" / f"{NEXT}_next.py").write_text(migration)
    schema = copy / "tokenstore" / "storage" / "tables.py"
    text = schema.read_text().replace(
        f'REVISION: Final = "{REVISION}"', f'REVISION: Final = "{NEXT}"'
    )
    text = text.replace(
        '    Column("failure", Text),', '    Column("failure", Text),\n    Column("note", Text),'
    )
    schema.write_text(text)
    return copy


def driver_in_use(repository: TokenRepository) -> sqlite3.Connection:
    """Return the driver's connection that the calling thread uses."""
    database = repository._database
    assert isinstance(database, SQLiteDatabase)
    driver = database._connections.current().driver
    assert driver is not None
    return driver

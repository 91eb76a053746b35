from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.stores import (
    NEXT,
    NEXT_MIGRATION,
    ROOT,
    SOON,
    copy_checkout,
    mode,
    names,
    newer_checkout,
    python,
    raw,
    tokens,
)
from tokenstore import SchemaTooNewError, StorageError, TokenRepository, migrate
from tokenstore.storage.migrations import scripts
from tokenstore.storage.tables import REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def filled(path: Path) -> Path:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(1))
        repository.save("bob", tokens(2), provider="google")
    return path


def accounts_of(path: Path) -> list[tuple[Any, ...]]:
    with raw(path) as connection:
        columns = "account_name, provider, access_token, refresh_token, expires_at, extra, version"
        return connection.execute(f"SELECT {columns} FROM accounts ORDER BY 1").fetchall()


def tables_of(path: Path) -> set[str]:
    with raw(path) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def said(command: Any, path: Path) -> str:
    stdout = io.StringIO()
    command(path, stdout=stdout)
    return stdout.getvalue()


# -- from Python ----------------------------------------------------------------------------------


def test_upgrade_creates_a_private_database_at_head(path: Path) -> None:
    migrate.upgrade(path)

    assert mode(path) == 0o600
    assert said(migrate.current, path) == f"{REVISION} (head)\n"
    with TokenRepository(path) as repository:
        assert repository.load("alice") is None


def test_upgrade_takes_a_url_and_an_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENSTORE_DATABASE", str(tmp_path / "named.db"))

    migrate.upgrade(f"sqlite:///{tmp_path}/url.db")
    migrate.upgrade()

    assert names(tmp_path) >= {"url.db", "named.db"}


def test_upgrading_again_changes_nothing(filled: Path) -> None:
    before = accounts_of(filled)

    migrate.upgrade(filled)
    migrate.upgrade(filled, REVISION)

    assert accounts_of(filled) == before
    assert not list(filled.parent.glob("*-backup-*"))


def test_current_and_history_print_to_the_given_stream(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(migrate.current, filled) == f"{REVISION} (head)\n"
    assert f"{REVISION} (head) (current)" in said(migrate.history, filled)
    migrate.check(filled, stdout=io.StringIO())
    assert capsys.readouterr() == ("", "")


def test_current_prints_to_stdout_by_default(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate.current(filled)

    assert capsys.readouterr() == (f"{REVISION} (head)\n", "")


def test_inspection_changes_and_creates_nothing(path: Path) -> None:
    assert said(migrate.current, path) == ""
    assert REVISION in said(migrate.history, path)
    with pytest.raises(StorageError, match="not up to date"):
        said(migrate.check, path)

    assert names(path.parent) == set()


def test_inspection_does_not_wait_for_a_writer(filled: Path) -> None:
    with raw(filled) as other:
        other.execute("BEGIN IMMEDIATE")

        assert said(migrate.current, filled) == f"{REVISION} (head)\n"


def test_check_finds_tables_that_differ(filled: Path) -> None:
    with raw(filled) as connection:
        connection.execute("ALTER TABLE accounts ADD COLUMN stray TEXT")

    with pytest.raises(StorageError, match="stray"):
        said(migrate.check, filled)


def test_a_downgrade_to_base_is_refused_while_there_are_accounts(filled: Path) -> None:
    before = accounts_of(filled)

    with pytest.raises(StorageError, match="destroy=yes") as caught:
        migrate.downgrade(filled, "base")

    assert caught.value.path == str(filled)
    assert "2 accounts" in str(caught.value)
    assert accounts_of(filled) == before


def test_a_downgrade_to_base_requires_destroy(filled: Path) -> None:
    migrate.downgrade(filled, "base", x=["destroy=yes"])

    assert not tables_of(filled) & {"accounts", "refreshes"}
    migrate.upgrade(filled)
    with TokenRepository(filled) as repository:
        assert repository.load("alice") is None
        repository.save("alice", tokens())


def test_a_database_without_accounts_can_be_downgraded_to_base(path: Path) -> None:
    migrate.upgrade(path)

    migrate.downgrade(path, "base")
    migrate.upgrade(path)

    assert said(migrate.current, path) == f"{REVISION} (head)\n"


@pytest.mark.parametrize("call", ["upgrade", "downgrade"])
def test_an_unknown_revision_is_a_storage_error(filled: Path, call: str) -> None:
    with pytest.raises(StorageError, match="8888") as caught:
        getattr(migrate, call)(filled, "8888")

    assert type(caught.value) is StorageError
    assert said(migrate.current, filled) == f"{REVISION} (head)\n"


@pytest.mark.parametrize(
    "call", [migrate.upgrade, migrate.downgrade, migrate.current, migrate.check]
)
def test_a_newer_database_is_a_schema_too_new_error(filled: Path, call: Any) -> None:
    with raw(filled) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    with pytest.raises(SchemaTooNewError, match="9999") as caught:
        call(filled)

    assert REVISION in str(caught.value)
    assert len(accounts_of(filled)) == 2


def test_migrating_inside_a_transaction_fails_at_once(filled: Path) -> None:
    with (
        TokenRepository(filled) as repository,
        repository.transaction(),
        pytest.raises(StorageError, match="inside a transaction"),
    ):
        migrate.upgrade(filled)


# -- threads and processes ------------------------------------------------------------------------


def test_threads_can_upgrade_different_databases_concurrently(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.db" for number in range(16)]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(migrate.upgrade, paths))

    assert [said(migrate.current, path) for path in paths] == [f"{REVISION} (head)\n"] * 16


def test_processes_can_upgrade_one_database_concurrently(path: Path) -> None:
    printed = python("tell(forked(8, lambda number: migrate.upgrade(sys.argv[1])))", path)

    assert printed == str([0] * 8) + "\n"
    assert said(migrate.current, path) == f"{REVISION} (head)\n"


# -- a migration more -----------------------------------------------------------------------------


def in_checkout(checkout: Path, code: str, *arguments: object) -> str:
    return python(code, *arguments, env={**os.environ, "PYTHONPATH": str(checkout)})


def test_every_migration_keeps_every_row(filled: Path, tmp_path: Path) -> None:
    checkout = newer_checkout(tmp_path)
    before = accounts_of(filled)

    in_checkout(checkout, "migrate.upgrade(sys.argv[1])", filled)
    up = accounts_of(filled)
    in_checkout(checkout, "migrate.downgrade(sys.argv[1])", filled)

    assert up == before
    assert accounts_of(filled) == before
    with TokenRepository(filled) as repository:
        assert repository.load("alice") == tokens(1)


def test_upgrade_backs_up_an_older_database(filled: Path, tmp_path: Path) -> None:
    checkout = newer_checkout(tmp_path)
    before = accounts_of(filled)

    for call in ("upgrade", "downgrade", "upgrade"):  # two backups within one second
        in_checkout(checkout, f"migrate.{call}(sys.argv[1])", filled)

    backups = sorted(filled.parent.glob(f"tokens.db-backup-{REVISION}-*"))
    assert len(backups) == 2
    assert {mode(backup) for backup in backups} == {0o600}
    assert [accounts_of(backup) for backup in backups] == [before] * 2


FAILING = NEXT_MIGRATION.replace(
    "\n\ndef downgrade",
    """
    op.create_table("half", sa.Column("id", sa.Integer()))
    op.execute("DELETE FROM accounts")
    raise KeyError("the migration failed")


def downgrade""",
)


@pytest.mark.parametrize("how", ["migrate", "repository"])
def test_a_failed_migration_leaves_the_database_unchanged(
    filled: Path, tmp_path: Path, how: str
) -> None:
    checkout = newer_checkout(tmp_path, FAILING)
    before, tables = accounts_of(filled), tables_of(filled)

    printed = in_checkout(
        checkout,
        """
for _ in range(2):
    try:
        if sys.argv[2] == "migrate":
            migrate.upgrade(sys.argv[1])
        else:
            TokenRepository(sys.argv[1], upgrade=True).load("alice")
    except KeyError as error:
        tell(error)
        """,
        filled,
        how,
    )

    assert printed == "'the migration failed'\n" * 2
    assert accounts_of(filled) == before
    assert tables_of(filled) == tables
    assert said(migrate.current, filled) == f"{REVISION} (head)\n"


def test_a_failed_migration_creates_no_database(path: Path, tmp_path: Path) -> None:
    checkout = newer_checkout(tmp_path, FAILING)

    printed = in_checkout(
        checkout,
        """
for create in (lambda: migrate.upgrade(sys.argv[1]),
               lambda: TokenRepository(sys.argv[1]).save("alice", tokens())):
    try:
        create()
    except KeyError as error:
        tell(error)
        """,
        path,
    )

    assert printed == "'the migration failed'\n" * 2
    assert not list(path.parent.glob("tokens.db-new*"))
    assert not path.exists()


# -- logging --------------------------------------------------------------------------------------


@pytest.fixture
def host_logging() -> Iterator[logging.Logger]:
    logger = logging.getLogger("host")
    handler = logging.StreamHandler(io.StringIO())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield logger
    root.removeHandler(handler)
    root.setLevel(level)


def state_of_logging() -> list[object]:
    found: list[object] = []
    for name in ("", "host", "sqlalchemy", "alembic", "tokenstore"):
        logger = logging.getLogger(name)
        found += [logger.level, tuple(logger.handlers), logger.disabled, logger.propagate]
    return found


def test_migrations_do_not_change_the_applications_logging(
    path: Path, host_logging: logging.Logger
) -> None:
    before = state_of_logging()

    migrate.upgrade(path)
    said(migrate.current, path)
    migrate.downgrade(path, "base")

    assert state_of_logging() == before
    assert not host_logging.disabled


# -- where the scripts are ------------------------------------------------------------------------


def test_an_installation_without_migrations_is_a_storage_error(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    (
        checkout / "alembic.ini"
    ).unlink()  # then "migrations" next to the package may be any project's

    printed = in_checkout(
        checkout,
        """
try:
    migrate.upgrade(sys.argv[1])
except StorageError as error:
    tell(error)
        """,
        tmp_path / "tokens.db",
    )

    assert "the migrations are missing; reinstall tokenstore" in printed


def test_a_path_may_contain_a_percent_sign(tmp_path: Path) -> None:
    (tmp_path / "100%s").mkdir()
    checkout = copy_checkout(tmp_path / "100%s")
    path = tmp_path / "100%s" / "50%.db"

    in_checkout(checkout, "migrate.upgrade(sys.argv[1])", path)

    assert said(migrate.current, path) == f"{REVISION} (head)\n"


# -- alembic's own command line -------------------------------------------------------------------


def alembic(*arguments: object, cwd: Path = ROOT, fails: bool = False, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=SOON,
        cwd=cwd,
        env={**os.environ, **variables},
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_alembic_upgrades_and_checks(path: Path) -> None:
    x = ("-x", f"database={path}")

    alembic(*x, "upgrade", "head")

    assert mode(path) == 0o600
    assert alembic(*x, "current") == f"{REVISION} (head)\n"
    assert "No new upgrade operations detected" in alembic(*x, "check")
    assert f"{REVISION} (head)" in alembic("history")
    assert alembic("heads") == f"{REVISION} (head)\n"
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())


def test_alembic_uses_the_default_database_of_the_environment(tmp_path: Path) -> None:
    alembic("upgrade", "head", TOKENSTORE_DATABASE=str(tmp_path / "default.db"))

    assert said(migrate.current, tmp_path / "default.db") == f"{REVISION} (head)\n"


def test_alembic_accepts_a_url_and_runs_in_any_directory(path: Path, tmp_path: Path) -> None:
    ini = ROOT / "alembic.ini"

    alembic("-c", ini, "-x", f"database=sqlite:///{path}", "upgrade", "head", cwd=tmp_path)

    assert said(migrate.current, path) == f"{REVISION} (head)\n"


def test_alembic_drops_accounts_only_on_request(filled: Path) -> None:
    before = accounts_of(filled)
    x = ("-x", f"database={filled}")

    refused = alembic(*x, "downgrade", "base", fails=True)

    assert "destroy=yes" in refused
    assert "Traceback" not in refused
    assert accounts_of(filled) == before
    alembic(*x, "-x", "destroy=yes", "downgrade", "base")
    assert "accounts" not in tables_of(filled)


def test_alembic_refuses_to_write_sql_scripts(path: Path) -> None:
    said = alembic("-x", f"database={path}", "upgrade", "head", "--sql", fails=True)

    assert "--sql is not supported" in said
    assert "Traceback" not in said
    assert not path.exists()


def test_alembic_generates_an_empty_revision_without_changes(path: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    x = ("-x", f"database={path}")
    alembic(*x, "upgrade", "head", cwd=checkout)

    alembic(
        *x, "revision", "--autogenerate", "--rev-id", NEXT, "-m", "Nothing at all", cwd=checkout
    )

    text = (checkout / "migrations" / "versions" / f"{NEXT}_nothing_at_all.py").read_text()
    assert text.count("    pass") == 2
    assert "op." not in text
    assert f"down_revision = '{REVISION}'" in text.replace('"', "'")
    alembic(*x, "upgrade", "head", cwd=checkout)
    assert alembic(*x, "current", cwd=checkout) == f"{NEXT} (head)\n"
    alembic(*x, "downgrade", "-1", cwd=checkout)
    assert alembic(*x, "current", cwd=checkout) == f"{REVISION}\n"


def test_alembic_generates_a_revision_with_the_changes(path: Path, tmp_path: Path) -> None:
    checkout = newer_checkout(tmp_path)
    (checkout / "migrations" / "versions" / f"{NEXT}_next.py").unlink()
    x = ("-x", f"database={path}")
    alembic(*x, "upgrade", "head", cwd=checkout)

    alembic(*x, "revision", "--autogenerate", "--rev-id", NEXT, "-m", "note", cwd=checkout)

    text = (checkout / "migrations" / "versions" / f"{NEXT}_note.py").read_text()
    assert "sa.Column('note', sa.Text()" in text
    alembic(*x, "upgrade", "head", cwd=checkout)
    assert "No new upgrade operations" in alembic(*x, "check", cwd=checkout)


def test_d14_alembic_backs_up_what_it_upgrades(filled: Path) -> None:
    x = ("-x", f"database={filled}")
    migrate.downgrade(filled, "0002")

    alembic(*x, "current")
    alembic(*x, "downgrade", "-1")
    assert not list(filled.parent.glob("*-backup-*"))
    alembic(*x, "upgrade", "head")
    alembic(*x, "upgrade", "head")

    [backup] = filled.parent.glob("tokens.db-backup-0001-*")
    assert mode(backup) == 0o600


def test_d14_alembic_stamps_no_store_without_tables(path: Path) -> None:
    refused = alembic("-x", f"database={path}", "stamp", "head", fails=True)

    assert "there are no tables" in refused
    assert "Traceback" not in refused
    assert not path.exists()


@pytest.mark.parametrize("x", ["databse=x.db", "destroy", "tag=1"])
def test_d14_alembic_refuses_an_unknown_argument(filled: Path, x: str) -> None:
    refused = alembic("-x", f"database={filled}", "-x", x, "upgrade", "head", fails=True)

    assert f"-x {x}: is not a known argument" in refused
    assert "Traceback" not in refused


def test_d14_an_unknown_argument_is_a_value_error(filled: Path) -> None:
    with pytest.raises(ValueError, match="is not a known argument"):
        migrate.downgrade(filled, "base", x=["destory=yes"])


def test_d12_unreadable_migrations_are_a_storage_error(path: Path) -> None:
    printed = python(
        """
from tokenstore.storage import migrations
import alembic.script
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    migrations._load()
except StorageError as error:
    message = str(error)
for descriptor in taken:
    os.close(descriptor)
tell(message)
        """,
        path,
    )

    assert "cannot read the migrations: Too many open files" in printed


def test_d18_routine_records_of_alembic_stay_out_of_the_applications_log(path: Path) -> None:
    printed = python(
        """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
from tokenstore import TokenRepository, migrate
repository = TokenRepository(sys.argv[1])
repository.save("alice", tokens())
migrate.check(sys.argv[1])
logging.getLogger("alembic.runtime.migration").info("of the application")
        """,
        path,
    )

    assert printed == (
        "No new upgrade operations detected.\nalembic.runtime.migration of the application\n"
    )


# -- an application's own alembic -----------------------------------------------------------------

HOST = """
import alembic.command, alembic.config, sqlalchemy as sa
from tokenstore import TokenRepository, migrate
directory = Path(sys.argv[1])
(directory / "mig" / "versions").mkdir(parents=True)
(directory / "mig" / "env.py").write_text('''
from alembic import context
import sqlalchemy as sa
with sa.create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
''')
(directory / "mig" / "versions" / "a1.py").write_text('''
from alembic import op
import sqlalchemy as sa
revision, down_revision = "a1", None
def upgrade():
    op.create_table("accounts", sa.Column("id", sa.Integer))
    op.execute("INSERT INTO accounts VALUES (1)")
    from __main__ import inside
    inside()
    op.execute("DELETE FROM accounts")
    op.add_column("accounts", sa.Column("more", sa.Integer))
''')
config = alembic.config.Config()
config.set_main_option("script_location", str(directory / "mig"))
config.set_main_option("path_separator", "os")
config.set_main_option("sqlalchemy.url", f"sqlite:///{directory / 'app.db'}")
database = directory / "tokens.db"

def accounts(database=database):
    with TokenRepository(database) as repository:
        return [account.name for account in repository.accounts()]

def columns():
    engine = sa.create_engine(f"sqlite:///{directory / 'app.db'}")
    names = [column["name"] for column in sa.inspect(engine).get_columns("accounts")]
    engine.dispose()
    return names
"""


def test_d2_a_store_can_be_migrated_inside_an_applications_migration(tmp_path: Path) -> None:
    inside = """
def inside():
    with TokenRepository(database) as repository:
        repository.save("alice", tokens())
    migrate.downgrade(database, "0002")
    migrate.upgrade(database)
    migrate.check(database)
alembic.command.upgrade(config, "head")
tell(accounts(), columns())
"""
    printed = python(HOST + inside, tmp_path)

    assert "['alice'] ['id', 'more']" in printed.splitlines()


def test_d2_a_store_can_be_migrated_while_an_application_migrates(tmp_path: Path) -> None:
    inside = """
from concurrent.futures import ThreadPoolExecutor
def work(number):
    other = directory / f"{number}.db"
    with TokenRepository(other) as repository:
        repository.save("bob", tokens())
    migrate.downgrade(other, "0001")
    migrate.upgrade(other)
    return str(accounts(other))
def inside():
    with ThreadPoolExecutor(4) as threads:
        tell(set(threads.map(work, range(8))))
alembic.command.upgrade(config, "head")
tell(columns())
"""
    printed = python(HOST + inside, tmp_path)

    assert printed.splitlines() == ["""{"['bob']"}""", "['id', 'more']"]


@pytest.mark.parametrize("script", [*scripts().glob("versions/*.py")], ids=lambda path: path.stem)
def test_d2_a_migration_uses_nothing_of_alembic_but_op(script: Path) -> None:
    found = {line for line in script.read_text().splitlines() if "alembic" in line}

    assert found <= {"from alembic import op", "from alembic.util import CommandError"}

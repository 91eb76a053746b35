"""A pooler between us and the server, which lends a server's connection for one transaction."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers.postgresql import NOBODY, empty, in_schema, schema_of
from tests.helpers.refreshes import World, until
from tests.helpers.requirements import PGBOUNCER, require
from tests.helpers.temporary import open_directory
from tests.whole.test_concurrency import race
from tokenstore import TokenRepository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SETTINGS = """
[databases]
postgres = host={directory} port=5432

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 30
max_client_conn = 500
"""


@pytest.fixture
def pooled(migrated: str) -> Iterator[str]:
    """The URL of the database through a pgbouncer."""
    require("pgbouncer")
    (directory,) = parse_qs(urlsplit(migrated).query)["host"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = open_directory()  # it does not run as root
    users = place / "users"
    users.write_text('"postgres" ""\n')
    settings = place / "pgbouncer.ini"
    settings.write_text(SETTINGS.format(directory=directory, port=port, users=users))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with subprocess.Popen([PGBOUNCER, "--quiet", settings], **NOBODY) as pgbouncer:
        until(listens)
        address = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres?gssencmode=disable"
        yield in_schema(address, schema_of(migrated))
        pgbouncer.terminate()
    empty(migrated)


def test_concurrent_refreshes_through_a_pooler_send_one_request(
    pooled: str, tmp_path: Path
) -> None:
    with World(tmp_path, pooled) as world:
        race(world, "wal", 1)


def test_a_lock_is_held_and_released_through_a_pooler(pooled: str) -> None:
    with TokenRepository(pooled) as one, TokenRepository(pooled) as other:
        with one.refresh_lock("alice", timeout=1.0) as hold:
            for number in range(3):
                one.save("alice", {"access_token": str(number)})
            with one.transaction():
                assert (one.load("alice") or {})["access_token"] == "2"
            assert other.load("alice") == one.load("alice")
            assert not hold.is_lost()
        with other.refresh_lock("alice", timeout=1.0):
            pass

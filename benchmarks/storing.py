"""Reads and writes of one account in a small store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Contender, Row, Target, interleaved
from benchmarks.peers import Authlib, Globus, GoogleAuth, Msal
from benchmarks.references import FileManager, Memory, RawSQLite, read_json
from benchmarks.sample_data import name, reads, rotated, tokens, writes
from tokenstore import TokenManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ACCOUNTS = [name(number) for number in range(10)]
_OURS = "tokenstore"


def rows(directory: Path) -> Iterator[Row]:
    """Measure in an empty directory."""
    with (
        TokenManager(directory / "tokens.db") as manager,
        TokenManager(directory / "tokens.db", cache_ttl=0) as uncached,
    ):
        memory, raw = Memory(), RawSQLite(directory / "raw.db")
        files = FileManager(directory)
        durable = FileManager(directory, durable=True)
        globus, msal = Globus(directory / "globus.db"), Msal(directory / "msal.bin")
        google, authlib = GoogleAuth(), Authlib()
        savers = (manager.save_tokens, memory.save, raw.save, files.save, globus.save, msal.save)
        for account in _ACCOUNTS:
            for save in (*savers, google.save, authlib.save):
                save(account, tokens())
        read = reads(_ACCOUNTS)

        cached = [
            Contender(_OURS, manager.get_valid_token, read, 5000),
            Contender("dict and clock", memory.get_valid_token, read, 5000),
            Contender("JSON files", files.get_valid_token, read, 5000),
            Contender("google-auth", google.get_valid_token, read, 2000),
            Contender("authlib", authlib.get_valid_token, read, 2000),
        ]
        yield Row(
            "`get_valid_token`, cached",
            interleaved(cached, rounds=40),
            [Target(_OURS, "dict and clock", 2.0), Target(_OURS, "JSON files", 1.0)],
        )
        stored = [
            Contender(_OURS, uncached.get_valid_token, read, 500),
            Contender("raw select", raw.token, read, 500),
            Contender("JSON files", files.get_stored_token, read, 200),
            Contender("globus-sdk", globus.get_valid_token, read, 10),
            Contender("msal", msal.get_valid_token, read, 50),
        ]
        yield Row(
            "`get_valid_token`, not cached, fresh token",
            interleaved(stored, rounds=40),
            [Target(_OURS, "raw select", 1.5)],
        )
        loads = [
            Contender(_OURS, manager.load_tokens, read, 200),
            Contender("json.load", lambda account: read_json(files.path(account)), read, 200),
            Contender("raw select", raw.load, read, 200),
            Contender("JSON files", files.load, read, 200),
            Contender("globus-sdk", globus.load, read, 10),
        ]
        yield Row("`load_tokens`", interleaved(loads, rounds=40), [Target(_OURS, "json.load", 1.1)])
        for work, make, targets in (
            (
                "`save_tokens`, durable",
                tokens,
                [Target(_OURS, "raw transaction", 1.4), Target(_OURS, "JSON files + fsync", 0.5)],
            ),
            ("`save_tokens`, durable, new refresh token", rotated, []),
        ):
            write = writes(_ACCOUNTS, make)
            saves = [
                Contender(_OURS, manager.save_tokens, write, 20),
                Contender("raw transaction", raw.save, write, 20),
                Contender("JSON files + fsync", durable.save, write, 20),
                Contender("globus-sdk", globus.save, write, 5),
                Contender("msal", msal.save, write, 5),
            ]
            yield Row(work, interleaved(saves, rounds=40), targets)
        raw.close()

"""Several workers on one store, one of which is killed in the middle of a request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.refreshes import until
from tokenstore import TokenManager
from tokenstore.testing import AuthorizationServer, Hold

if TYPE_CHECKING:
    from tokenstore.models.accounts import HistoryEntry

COMMAND = [str(Path(sys.executable).with_name("tokenstore"))]
WORKERS = 4
PATIENCE = 600.0  # seconds


class BulkRefresher:
    """Workers, a strict provider whose tokens live for *lifetime* seconds, and accounts.

    A token is due after half its life, so that is the period in which each is to be refreshed.
    """

    def __init__(self, database: str, directory: Path, *, accounts: int, lifetime: float) -> None:
        self._exit = ExitStack()
        self.period = lifetime / 2
        self.server = self._exit.enter_context(AuthorizationServer(expires_in=lifetime))
        self.names = [f"account {number:05}" for number in range(accounts)]
        self.manager = self._exit.enter_context(
            TokenManager(database, providers={"test": self.server.provider()})
        )
        file = directory / "providers.toml"
        table = {
            "token_endpoint": self.server.token_endpoint,
            "client_id": "tokenstore",
            "client_secret_env": "TEST_CLIENT_SECRET",
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        file.write_text("\n".join(["[test]", *lines]))
        self._environment = {
            **os.environ,
            "TOKENSTORE_DATABASE": database,
            "TOKENSTORE_PROVIDERS": str(file),
            "TEST_CLIENT_SECRET": str(self.server.provider().client_secret),
        }
        for start in range(0, accounts, 500):
            with self.manager._repository.transaction():
                for name in self.names[start : start + 500]:
                    tokens = {**self.server.sign_in(name), "expires_in": -1}
                    self.manager.save_tokens(name, tokens, provider="test")

    def __enter__(self) -> BulkRefresher:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def start(self) -> subprocess.Popen[str]:
        """Start one more worker."""
        worker = subprocess.Popen(
            [*COMMAND, "refresh", "--all", "--every", "1s", "--jobs", "8"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._exit.enter_context(worker)
        self._exit.callback(worker.kill)
        return worker

    def history(self) -> dict[str, list[HistoryEntry]]:
        """Return the journal of each account, the oldest first."""
        found: dict[str, list[HistoryEntry]] = defaultdict(list)
        for entry in self.manager.history():
            found[entry.account_name].insert(0, entry)
        return found

    def is_done(self, periods: int) -> bool:
        """Tell whether each account was refreshed so often, or has died."""
        if len(self.server.requests) < periods * len(self.names):
            return False
        history = self.history()
        return all(
            sum(e.outcome == "refreshed" for e in history[name]) >= periods
            or any(e.outcome == "reauthorization" for e in history[name])
            for name in self.names
        )


def run(fleet: BulkRefresher, *, periods: int) -> dict[str, int]:
    """Let the fleet work, and one worker die in the middle of a request; check what came of it."""
    hold = Hold()
    fleet.server.script(hold, subject=fleet.names[0])
    workers = [fleet.start() for _ in range(WORKERS)]
    assert hold.arrived.wait(PATIENCE)
    [held] = fleet.manager.history(fleet.names[0])
    pids = {worker.pid: worker for worker in workers}
    until(lambda: len(fleet.server.requests) > len(fleet.names) // 4, PATIENCE)
    victim = pids[held.pid]
    victim.kill()
    victim.communicate()
    hold.release.set()
    workers.remove(victim)
    until(lambda: fleet.is_done(periods), PATIENCE)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err

    named = set()
    refreshed = 0
    requests = Counter(request.subject for request in fleet.server.requests)
    for name, entries in fleet.history().items():
        if any(e.outcome == "interrupted" for e in entries):
            named.add(name)
            assert {e.pid for e in entries if e.outcome == "interrupted"} == {victim.pid}
            continue
        assert {e.outcome for e in entries} == {"refreshed"}, name
        assert requests[name] == len(entries), name
        refreshed += len(entries)
        for earlier, later in pairwise(entries):
            assert later.started_at >= earlier.started_at + fleet.period, name
    assert 1 <= len(named) <= 8  # no more than the victim had jobs
    shares = Counter(e.pid for entries in fleet.history().values() for e in entries)
    assert {pid for pid in shares if pid in pids} == set(pids)  # all had a part in it
    return {"refreshed": refreshed, "named": len(named), "requests": len(fleet.server.requests)}

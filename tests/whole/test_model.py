"""Whatever is done to a repository, and from wherever, it answers as a dictionary would."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.helpers.refreshes import Clock
from tests.helpers.stores import Process, becomes, begin, raw
from tests.helpers.strategies import examples, json_values, secrets, storable_text
from tokenstore import TokenRepository
from tokenstore.models.failures import Failure
from tokenstore.models.tokens import TokenSet, normalize_account_name
from tokenstore.storage.journal import SpentToken, UnderWay
from tokenstore.storage.statements import HISTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenstore.storage.journal import Refresh

pytestmark = pytest.mark.slow

NOW = 1_800_000_000.0
BUFFER = 300.0  # seconds
PAGE = 3  # rows a query, so that there are pages

PEER = f"""
import json
from dataclasses import asdict
from tokenstore.models.tokens import TokenSet, normalize_account_name
import tokenstore.storage.listing

tokenstore.storage.listing._PAGE = {PAGE}

class Peer:
    def open(self, path, journal_mode):
        self.repository = TokenRepository(path, journal_mode=journal_mode, clock=lambda: now)

    def close(self):
        self.repository.close()

    def save(self, name, tokens, provider):
        self.repository.save(name, tokens, provider=provider)

    def put(self, name, tokens, existing):
        tokens = TokenSet.from_mapping(tokens, now=now)
        return self.repository.put(normalize_account_name(name), tokens, existing=existing)

    def delete(self, name):
        return self.repository.delete(name)

    def accounts(self):
        return [asdict(account) for account in self.repository.accounts()]

    def load(self, name):
        return self.repository.load(name)

peer = Peer()
for line in sys.stdin:
    now, call, *given = json.loads(line)
    tell(json.dumps(getattr(peer, call)(*given)))
"""


class Peer(Process):
    """A repository in another process, which goes by the clock of this one."""

    clock = Clock(NOW)

    def __getattr__(self, call: str) -> Any:
        if not hasattr(Here, call) and call != "open":
            raise AttributeError(call)

        def ask(*given: object) -> Any:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([self.clock.now, call, *given]) + "\n")
            self._process.stdin.flush()
            return json.loads(self.line())

        return ask


class Here:
    """A repository in this process, with the methods of `Peer`."""

    def __init__(self, path: Path, journal_mode: Any, clock: Clock) -> None:
        self.clock = clock
        self.repository = TokenRepository(path, journal_mode=journal_mode, clock=clock)

    def close(self) -> None:
        self.repository.close()

    def save(self, name: str, tokens: dict[str, Any], provider: str | None) -> None:
        self.repository.save(name, tokens, provider=provider)

    def put(self, name: str, tokens: dict[str, Any], existing: Any) -> bool:
        token_set = TokenSet.from_mapping(tokens, now=self.clock())
        return self.repository.put(normalize_account_name(name), token_set, existing=existing)

    def delete(self, name: str) -> bool:
        return self.repository.delete(name)

    def accounts(self) -> list[dict[str, Any]]:
        return [asdict(account) for account in self.repository.accounts()]

    def load(self, name: str) -> dict[str, Any] | None:
        return self.repository.load(name)


# -- the model ------------------------------------------------------------------------------------


@dataclass
class Entry:
    """The expected state of an account."""

    tokens: dict[str, Any]
    provider: str | None
    obtained_at: float | None = None
    refreshed_at: float | None = None
    failure: Failure | None = None

    def account(self, name: str, now: float) -> dict[str, Any]:
        """Return the expected `Account` at *now*."""
        refreshable = self.tokens.get("refresh_token") is not None
        return {
            "name": name,
            "provider": self.provider,
            "state": self._state(now, refreshable=refreshable),
            "expires_at": self.tokens.get("expires_at"),
            "refreshed_at": self.refreshed_at,
            "last_error": None if self.failure is None else self.failure.message,
            "refresh_token_obtained_at": self.obtained_at,
            "refresh_token_expires_at": None,
            "refreshable": refreshable and not self._is_hopeless(now),
        }

    def _state(self, now: float, *, refreshable: bool) -> str:
        if self.failure is not None and self.failure.kind == "reauthorization":
            return "sign_in"
        if self.failure is not None and self.failure.kind == "client_rejected":
            return "misconfigured"
        if not self._is_due(now):
            return "valid"
        if not refreshable:
            return "sign_in"
        return "retry_later" if self._is_hopeless(now) else "due"

    def _is_due(self, now: float) -> bool:
        expires_at = self.tokens.get("expires_at")
        if expires_at is None:
            endless = self.tokens.get("refresh_token") is None and self.failure is None
            return not (endless and self.tokens.get("access_token") is not None)
        if self.refreshed_at is None:
            return bool(now >= expires_at - BUFFER)
        lifetime = max(0.0, expires_at - self.refreshed_at)
        return bool(now >= expires_at - min(BUFFER, lifetime / 2))

    def _is_hopeless(self, now: float) -> bool:
        if self.failure is None:
            return False
        if self.failure.kind == "reauthorization":
            return True
        return self.failure.retry_at is not None and now < self.failure.retry_at <= now + 3600


@dataclass
class Line:
    """An expected entry of the journal."""

    name: str
    sent: str | None
    outcome: str | None = None
    maybe_spent: bool = False
    received: str | None = None
    failed: bool = False
    at_work: bool = True

    @property
    def is_spent(self) -> bool:
        succeeded = self.outcome in {"refreshed", "superseded"} and not self.failed
        return succeeded and self.received != self.sent

    @property
    def is_unclear(self) -> bool:
        return self.outcome in {None, "interrupted"} or self.maybe_spent


@dataclass
class Begun:
    """A refresh that has begun, and the refresh token that it sends."""

    refresh: Refresh
    sent: str | None = field(repr=False)


# -- the rules ------------------------------------------------------------------------------------

any_tokens = st.builds(
    lambda extra, known: extra | known,
    st.dictionaries(
        storable_text.filter(lambda name: name not in {"expires_in", "expires_at"}),
        json_values,
        max_size=2,
    ),
    st.fixed_dictionaries(
        {"access_token": secrets},
        optional={
            "refresh_token": secrets | st.sampled_from(["one", "other"]),
            "expires_at": st.sampled_from([0.0, -1.0, 100.0, 300.0, 301.0, 4000.0]).map(NOW.__add__)
            | st.floats(min_value=0, max_value=1e11),
        },
    ),
)
failures = st.builds(
    Failure,
    kind=st.sampled_from(["reauthorization", "transient", "client_rejected"]),
    message=st.just("the provider said no"),
    client=st.just("client"),
    maybe_spent=st.booleans(),
    retry_at=st.none() | st.sampled_from([0.0, 60.0, 3600.0, 9000.0]).map(NOW.__add__),
)
outcomes = failures | st.builds(
    TokenSet,
    access_token=secrets,
    refresh_token=st.none() | st.sampled_from(["one", "other"]),
    expires_at=st.sampled_from([60.0, 3600.0, 7200.0]).map(NOW.__add__),
)
who = st.integers(0, 2)


class Interrupted(Exception):  # noqa: N818
    pass


class Model(RuleBasedStateMachine):
    """Two repositories here and one in another process, on one database; and a dictionary."""

    names: Bundle[str] = Bundle("names")
    begun: Bundle[Begun] = Bundle("begun")
    directory: Path
    peer: Peer
    number = 0

    @initialize(
        target=names,
        given=st.lists(storable_text.filter(bool), min_size=1, max_size=2),
        others=st.sets(st.sampled_from("0aAzä漢😀")),
        journal_mode=st.sampled_from(["wal", "delete"]),
    )
    def begin(self, given: list[str], others: set[str], journal_mode: str) -> Any:
        Model.number += 1
        self.path = self.directory / f"{Model.number}.db"
        self.clock = self.peer.clock = Clock(NOW)
        self.journal_mode = journal_mode
        self.expected: dict[str, Entry] = {}
        self.journal: dict[int, Line] = {}
        self.open(journal_mode)
        with self.repository.transaction():
            for name in others:
                self.save(0, name, {"access_token": name}, None)
        return multiple(*(unicodedata.normalize("NFC", name) for name in given))

    def open(self, journal_mode: str) -> None:
        self.peer.open(str(self.path), journal_mode)
        here = [Here(self.path, journal_mode, self.clock) for _ in range(2)]
        self.places: list[Any] = [*here, self.peer]
        self.repository = here[0].repository

    def teardown(self) -> None:
        if hasattr(self, "places"):
            self.close()

    @rule(place=who, name=names, given=any_tokens, provider=st.sampled_from([None, "a", "b"]))
    def save(self, place: int, name: str, given: dict[str, Any], provider: str | None) -> None:
        self.places[place].save(unicodedata.normalize("NFD", name), given, provider)
        self._replace(name, given, provider)

    def _replace(self, name: str, given: dict[str, Any], provider: str | None = None) -> None:
        old = self.expected.get(name)
        new = Entry(given, provider or (old.provider if old is not None else None))
        if given.get("refresh_token") is not None:
            same = old is not None and old.tokens.get("refresh_token") == given["refresh_token"]
            known = old.obtained_at if old is not None and same else None
            new.obtained_at = self.clock.now if known is None else known
        self.expected[name] = new

    @rule(place=who, name=names)
    def delete(self, place: int, name: str) -> None:
        was = self.expected.pop(name, None)
        assert self.places[place].delete(name) == (was is not None)
        if was is not None:
            ended = [n for n, line in self.journal.items() if line.name == name and line.outcome]
            for number in ended:
                del self.journal[number]

    @rule(
        place=who,
        name=names,
        given=any_tokens,
        existing=st.sampled_from(["keep", "keep_newer", "replace"]),
    )
    def put(self, place: int, name: str, given: dict[str, Any], existing: str) -> None:
        old = self.expected.get(name)
        wanted = old is None or existing == "replace"
        if old is not None and existing == "keep_newer" and given.get("expires_at") is not None:
            then = old.tokens.get("expires_at")
            wanted = then is None or then < given["expires_at"]
        assert self.places[place].put(name, given, existing) == wanted
        if wanted:
            self._replace(name, given)

    @rule(name=names, given=any_tokens, fail=st.booleans())
    def save_in_a_transaction(self, name: str, given: dict[str, Any], fail: bool) -> None:
        before = dict(self.expected), dict(self.journal)
        try:
            with self.repository.transaction():
                self.delete(0, name)
                self.save(0, name, given, None)
                if fail:
                    raise Interrupted
        except Interrupted:
            self.expected, self.journal = before

    @rule(target=begun, name=names)
    def begin_a_refresh(self, name: str) -> Any:
        entry = self.expected.get(name)
        if entry is None:
            return multiple()
        its = [line for line in self.journal.values() if line.name == name]
        sent = entry.tokens.get("refresh_token")
        if any(line.outcome is None and line.at_work for line in its):
            with pytest.raises(UnderWay):
                begin(self.repository, name)
            return multiple()
        if any(line.sent == sent and line.is_spent for line in its):
            with pytest.raises(SpentToken):
                begin(self.repository, name)
            return multiple()
        refresh = begin(self.repository, name)
        for line in its:
            line.outcome = line.outcome or "interrupted"
        unclear = any(line.sent == sent and line.is_unclear for line in its)
        assert (self.repository.journal.unanswered(refresh) is not None) == unclear
        assert refresh.id > max(self.journal, default=0)
        self.journal[refresh.id] = Line(name, sent)
        return Begun(refresh, sent)

    @rule(begun=consumes(begun))
    def abandon_a_refresh(self, begun: Begun) -> None:
        self.repository.journal.abandon(begun.refresh)
        line = self.journal.get(begun.refresh.id)
        if line is not None:
            line.at_work = False

    @rule(begun=consumes(begun), outcome=outcomes)
    def end_a_refresh(self, begun: Begun, outcome: TokenSet | Failure) -> None:
        name = begun.refresh.record.account_name
        given = outcome if isinstance(outcome, Failure) else becomes(outcome)
        stored = self.repository.journal.finish(begun.refresh, given, provider="p")
        current = self.expected.get(name)
        assert (stored is None) == (current is None)
        if current is None:
            self.journal.pop(begun.refresh.id, None)
            return
        applied = current.tokens.get("refresh_token") == begun.sent
        told = outcome.kind if isinstance(outcome, Failure) else "refreshed"
        if applied and isinstance(outcome, Failure):
            current.failure = outcome
        elif applied and isinstance(outcome, TokenSet):
            provider = current.provider or "p"
            started_at = begun.refresh.started_at
            self.expected[name] = Entry(outcome.to_dict(), provider, None, started_at)
        line = self.journal[begun.refresh.id]
        line.outcome = told if applied else "superseded"
        line.received = self.expected[name].tokens.get("refresh_token")
        line.failed = isinstance(outcome, Failure)
        line.maybe_spent = isinstance(outcome, Failure) and outcome.maybe_spent
        its = sorted(number for number, line in self.journal.items() if line.name == name)
        for number in its[:-HISTORY]:
            del self.journal[number]

    @rule(seconds=st.sampled_from([1.0, 100.0, 1000.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def close(self) -> None:
        for place in self.places:
            place.close()

    @rule(journal_mode=st.sampled_from(["wal", "delete"]))
    def open_again(self, journal_mode: str) -> None:
        self.close()
        if "delete" in {journal_mode, self.journal_mode} and self.path.exists():
            self.journal_mode = "delete"  # for good
        elif not self.path.exists():
            self.journal_mode = journal_mode
        self.open(journal_mode)
        self.look(self.places[0])
        if self.path.exists():
            with raw(self.path) as connection:
                mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            assert mode == self.journal_mode

    @rule()
    def look_from_elsewhere(self) -> None:
        self.look(self.peer)

    @invariant()
    def answers_are_those_of_the_dictionary(self) -> None:
        if hasattr(self, "places"):
            self.look(self.places[0])
            self.look(self.places[1])
            self.look_at_the_journal()

    def look(self, place: Any) -> None:
        now = self.clock.now
        accounts = [self.expected[name].account(name, now) for name in sorted(self.expected)]
        assert place.accounts() == accounts
        for name, entry in self.expected.items():
            assert place.load(name) == entry.tokens

    def look_at_the_journal(self) -> None:
        lines = [(number, line.name, line.outcome) for number, line in self.journal.items()]
        found = [(e.id, e.account_name, e.outcome) for e in self.repository.journal.history()]
        assert found == lines[::-1]
        for name in self.expected:
            its = [e.id for e in self.repository.journal.history(name)]
            assert its == [number for number, its_name, _ in lines[::-1] if its_name == name]


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(PEER)
    with peer:
        assert isinstance(peer, Peer)
        yield peer


@pytest.mark.hypothesis
def test_a_repository_behaves_like_a_dictionary(
    tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.listing._PAGE", PAGE)
    Model.directory, Model.peer = tmp_path, peer

    run_state_machine_as_test(
        Model,
        settings=examples(40, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow]),
    )

"""The edges of a refresh, at which logins were once lost. Each test names the fault it holds off.

R1, R2 …: the numbers of the list of faults; each is described by the first test of its section.
"""

from __future__ import annotations

import base64
import dis
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, Told, World, on_both_engines
from tests.helpers.stores import Process
from tokenstore import (
    ProviderConfigurationError,
    ReauthorizationRequired,
    StorageError,
    SupersededTokenError,
    TokenManager,
    TokenPersistError,
    TransientRefreshError,
)
from tokenstore.jsonfiles import import_accounts
from tokenstore.testing import Answer, Drop, Transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import CodeType, FrameType

HOUR = 3600.0

pytestmark = on_both_engines


@pytest.fixture
def real(world: World) -> World:
    """A world whose clock shows the time, as that of other processes does."""
    world.clock.now = time.time()
    return world


USER = """
from tokenstore import Provider, TokenManager
database, endpoint, secret, timeout = sys.argv[1:]
provider = Provider("test", endpoint, "tokenstore", client_secret=secret)
manager = TokenManager(database, providers={"test": provider}, timeout=float(timeout))
signal.signal(signal.SIGTERM, signal.default_int_handler)
"""


def process(world: World, code: str, timeout: float = SOON) -> Process:
    """Start a process that has a manager of the database."""
    provider = world.server.provider()
    return Process(
        USER + code, world.database, provider.token_endpoint, provider.client_secret, timeout
    )


def lives(world: World) -> bool:
    """Return whether what is stored of alice can be used and refreshed again, with no reuse."""
    access_token = world.tokens()[0]
    assert access_token is not None
    live = world.server.is_live(access_token)
    world.manager().refresh_token("alice")
    return live and world.server.reuses == 0


# -- R1 and R2: the end of a process ----------------------------------------------------------


ENDS = {
    "script": """
try:
    manager.get_valid_token("alice")
except KeyboardInterrupt:
    tell("interrupted")
""",
    "with": """
try:
    with manager:
        try:
            manager.get_valid_token("alice")
        except KeyboardInterrupt:
            tell("interrupted")
            raise
except KeyboardInterrupt:
    pass
""",
    "sys.exit": """
try:
    list(manager.refresh_all())
except KeyboardInterrupt:
    tell("interrupted")
    sys.exit(0)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS.keys())
def test_r1_a_process_that_is_interrupted_ends_after_what_it_sent_is_stored(
    real: World, code: str, number: signal.Signals
) -> None:
    """R1: Ctrl-C or SIGTERM while a request is out loses nothing."""
    real.sign_in()
    hold = real.hold()
    with process(real, code) as user:
        assert hold.arrived.wait(SOON)
        os.kill(user.pid, number)
        assert user.line() == "interrupted"
        hold.release.set()
        assert user.end() == 0
    assert real.outcomes() == ["refreshed"]
    assert lives(real)


def test_r1_closing_ends_after_what_was_sent_is_stored(world: World, manager: TokenManager) -> None:
    """R1: `close` while another thread's request is out."""
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    closing = Call(manager.close)
    hold.release.set()
    closing.result()
    assert world.outcomes() == ["refreshed"]
    assert call.result() == world.tokens()[0]


@pytest.mark.slow
def test_r2_a_late_response_is_stored_though_the_script_has_ended(real: World) -> None:
    """R2: the response comes after the caller's timeout, and the script ends."""
    real.sign_in()
    hold = real.hold()
    give_up = 'tell(manager.get_valid_token("alice"))'
    with process(real, give_up, timeout=2.0) as user:
        assert hold.arrived.wait(SOON)
        assert user.line() == "None"
        hold.release.set()
        assert user.end() == 0
    assert real.outcomes() == ["refreshed"]
    assert lives(real)


# -- R3: what cannot be stored ----------------------------------------------------------------


PERSIST = """
try:
    manager.get_valid_token("alice")
except TokenPersistError:
    tell("not stored")
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", ["wait()", ""], ids=["it lives", "it ends"])
def test_r3_nobody_sends_a_token_whose_successor_is_not_stored_yet(
    real: World, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: the lock is kept until the response is stored; others hear by whom."""
    monkeypatch.setattr("tokenstore.lifecycle.request.BUSY", 0.1)
    real.sign_in()
    real.refuse_outcome()
    with process(real, PERSIST + after, timeout=1.0) as user:
        assert user.line() == "not stored"
        with pytest.raises(TransientRefreshError) as caught:
            real.manager(timeout=0.1).ensure_valid_token("alice")
        assert f"process {user.pid} on {socket.gethostname()}" in str(caught.value)
        assert real.posts == 1
        real.accept()
        token = Call(real.manager().get_valid_token, "alice").result()
        assert user.end() == 0
    assert token == real.tokens()[0]
    assert real.outcomes() == ["refreshed"]
    assert lives(real)


# -- R4: a row that is edited meanwhile ---------------------------------------------------------


def annotate(world: World, tokens: dict[str, Any], _: Path) -> None:
    world.manager().save_tokens("alice", {**tokens, "note": "edited"})


def import_again(world: World, tokens: dict[str, Any], directory: Path) -> None:
    file = directory / "alice.json"
    file.write_text(json.dumps({**tokens, "note": "edited"}))
    [result] = import_accounts(world.manager()._repository, file, replace=True)
    assert result.outcome == "imported"


@pytest.mark.parametrize("edit", [annotate, import_again])
@pytest.mark.parametrize("call", ["refresh_token", "get_valid_token"])
def test_r4_a_row_edited_during_the_request_gets_the_response(
    world: World,
    manager: TokenManager,
    tmp_path: Path,
    edit: Callable[[World, dict[str, Any], Path], None],
    call: str,
) -> None:
    """R4: the row was touched, but it still holds the refresh token that was sent."""
    tokens = world.sign_in()
    hold = world.hold()
    refreshing = Call(getattr(manager, call), "alice")
    assert hold.arrived.wait(SOON)
    edit(world, tokens, tmp_path)
    hold.release.set()
    refreshing.result()
    stored = manager.load_tokens("alice")
    assert stored is not None
    assert stored["note"] == "edited"
    assert world.outcomes() == ["refreshed"]
    assert (world.posts, world.server.reuses) == (1, 0)
    assert lives(world)


def test_r4_a_refusal_stands_for_the_token_that_was_sent(
    world: World, manager: TokenManager
) -> None:
    """R4: likewise, if the provider refuses it."""
    tokens = world.sign_in()
    hold = world.hold()
    refreshing = Call(manager.ensure_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    world.server.revoke("alice")
    world.manager().save_tokens("alice", {**tokens, "note": "edited"})
    hold.release.set()
    assert isinstance(refreshing.error(), ReauthorizationRequired)
    assert world.outcomes() == ["reauthorization"]
    assert [account.state for account in manager.accounts()] == ["sign_in"]
    assert world.posts == 1


# -- R5: an old copy --------------------------------------------------------------------------


def test_r5_an_old_copy_of_the_tokens_is_not_saved(world: World, manager: TokenManager) -> None:
    """R5: load, another refreshes, save."""
    world.sign_in()
    loaded = manager.load_tokens("alice")
    assert loaded is not None
    world.manager().refresh_token("alice")
    row = world.row()
    for name in ("alice", "another"):
        with pytest.raises(SupersededTokenError) as caught:
            manager.save_tokens(name, {**loaded, "note": "edited"})
        assert caught.value.spent_at == world.clock.now
        assert caught.value.field == "refresh_token"
        assert loaded["refresh_token"] not in str(caught.value)
    assert world.row() == row
    assert manager.load_tokens("another") is None
    assert lives(world)


@pytest.mark.parametrize(
    ("how", "outcome"),
    [({"replace": True}, "failed"), ({"newer": True}, "skipped")],
    ids=["replace", "newer"],
)
def test_r5_an_old_file_is_not_imported(
    world: World, manager: TokenManager, tmp_path: Path, how: dict[str, Any], outcome: str
) -> None:
    """R5: import of a file that was written before a refresh."""
    file = tmp_path / "alice.json"
    file.write_text(json.dumps({**world.sign_in(), "expires_at": world.clock.now + 9 * HOUR}))
    manager.refresh_token("alice")
    row = world.row()
    [result] = import_accounts(manager._repository, file, **how)
    assert result.outcome == outcome
    assert world.row() == row
    assert lives(world)


def test_r5_a_spent_token_that_was_restored_is_not_sent(
    world: World, manager: TokenManager
) -> None:
    """R5: the database was restored, or edited, past this library."""
    world.sign_in()
    row = world.row()
    manager.refresh_token("alice")
    world.sql(f"UPDATE accounts SET {', '.join(f'{name} = ?' for name in row)}", *row.values())
    manager = world.manager()
    for call in (manager.ensure_valid_token, manager.refresh_token):
        with pytest.raises(ReauthorizationRequired, match="exchanged for another one"):
            call("alice")
    assert (world.posts, world.server.reuses) == (1, 0)


# -- R11: inside a transaction ------------------------------------------------------------------


@pytest.mark.parametrize("call", ["get_valid_token", "ensure_valid_token", "refresh_token"])
def test_r11_a_due_token_inside_a_transaction_is_refused_at_once(
    world: World, manager: TokenManager, call: str
) -> None:
    """R11: it would wait for itself, with the token spent."""
    world.sign_in()
    fresh = world.sign_in("bob", expires_in=HOUR)
    with manager._repository.transaction():
        with pytest.raises(StorageError) as caught:
            getattr(manager, call)("alice")
        assert manager.get_valid_token("bob") == fresh["access_token"]
    assert caught.value.errno == errno.EDEADLK
    assert "transaction" in str(caught.value)
    assert world.posts == 0
    assert manager.get_valid_token("alice") is not None


# -- R12: interrupts ----------------------------------------------------------------------------


_LOOKED_AT = {"CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"}
_MODULES = ("tokenstore", "contextlib", "concurrent", "threading", "filelock")
_points: dict[CodeType, set[int]] = {}


def points_of(code: CodeType) -> set[int]:
    """Return the instructions before which the interpreter looks for signals."""
    if code not in _points:
        names = [(one.offset, one.opname) for one in dis.get_instructions(code)]
        follows = zip(names[1:], names, strict=False)
        _points[code] = {offset for (offset, _), (_, before) in follows if before in _LOOKED_AT}
    return _points[code]


class Interrupt:
    """Raises KeyboardInterrupt at one of the points of a call in this thread.

    Attributes:
        was_raised: Whether the call had so many points.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self.was_raised = False

    def __enter__(self) -> Interrupt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, _event: str, _: object) -> Any:
        if not frame.f_globals.get("__name__", "").startswith(_MODULES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._at

    def _at(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode" and frame.f_lasti in points_of(frame.f_code):
            self._left -= 1
            if not self._left:
                self.was_raised = True
                raise KeyboardInterrupt
        return self._at


@pytest.mark.slow
@pytest.mark.parametrize("call", ["refresh_token", "get_valid_token"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_r12_an_interrupt_anywhere_leaves_nothing_behind(world: World, call: str) -> None:
    """R12: no login is lost, and no lock and no account is stuck, wherever it strikes."""
    assert threading.current_thread() is threading.main_thread()
    world.sign_in("warm")
    manager = world.manager(timeout=5.0)
    manager.refresh_token("warm")
    number, struck = 1, 0
    while True:
        name = f"account-{number}"
        world.sign_in(name)
        try:
            with Interrupt(number) as interrupt:
                getattr(manager, call)(name)
        except KeyboardInterrupt:
            struck += 1
        if not interrupt.was_raised:
            break
        Call(manager.save_tokens, "other", {"access_token": "a"}).result()
        again = Call(manager.refresh_token, name).result()
        assert world.server.is_live(again["access_token"]), number
        assert world.server.reuses == 0, number
        number += 7
    assert struck > 10
    manager.close()
    assert world.sql("SELECT count(*) FROM refreshes WHERE outcome IS NULL") == [(0,)]


# -- R14: hooks and handlers ----------------------------------------------------------------------


@pytest.mark.slow
def test_r14_hooks_run_outside_the_lock_after_a_late_response(world: World) -> None:
    """R14: nobody waits for the response any more."""
    world.sign_in()
    answers: list[object] = []
    told = threading.Event()

    def hook(name: str, _: object) -> None:
        with world.manager()._repository.refresh_lock(name, timeout=0.0):
            answers.append(Call(manager.get_valid_token, name).result())
        told.set()

    hold = world.hold()
    manager: TokenManager = world.manager(timeout=1.5, on_refreshed=hook)
    assert manager.get_valid_token("alice") is None
    hold.release.set()
    assert told.wait(SOON)
    assert answers == [world.tokens()[0]]


class Asking(logging.Handler):
    """A log handler that asks for the token of the account that is being refreshed."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self._ask = ask
        self.errors: list[BaseException] = []
        self.asked = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "trying again until it is done" in record.getMessage():
            try:
                self._ask()
            except TransientRefreshError as error:
                self.errors.append(error)
            self.asked.set()


@pytest.mark.slow
def test_r14_who_asks_for_what_he_holds_is_told_at_once(
    world: World, impatient: TokenManager
) -> None:
    """R14: a log handler that asks for the token from within the refresh."""
    world.sign_in()
    world.refuse_outcome()
    handler = Asking(lambda: impatient.ensure_valid_token("alice"))
    logger = logging.getLogger("tokenstore")
    logger.addHandler(handler)
    try:
        with pytest.raises(TokenPersistError):
            impatient.ensure_valid_token("alice")
        assert handler.asked.wait(SOON)
    finally:
        logger.removeHandler(handler)
    [error] = handler.errors
    assert f"process {os.getpid()} on" in str(error)
    world.accept()
    assert impatient.get_valid_token("alice") == world.tokens()[0]
    assert world.posts == 1


def test_r14_a_thread_that_asks_for_a_lock_it_holds_is_told_at_once(world: World) -> None:
    """R14: it would wait for itself."""
    repository = world.manager()._repository
    with (
        repository.refresh_lock("alice", timeout=SOON),
        pytest.raises(StorageError) as caught,
        repository.refresh_lock("alice", timeout=SOON),
    ):
        pass
    assert caught.value.errno == errno.EDEADLK


# -- R16: replay windows ---------------------------------------------------------------------------


def with_window(world: World, seconds: float | None) -> TokenManager:
    provider = replace(world.server.provider(), replay_window=seconds)
    return world.manager(providers={"test": provider})


@pytest.mark.parametrize(("window", "posts"), [(30.0, 2), (None, 1)], ids=["window", "none"])
def test_r16_a_lost_response_is_asked_for_again_inside_the_window(
    world: World, window: float | None, posts: int
) -> None:
    """R16: the provider accepts the same token once more for some time."""
    world.sign_in()
    world.server.script(Drop(spent=False))
    token = with_window(world, window).get_valid_token("alice")
    assert world.posts == posts
    assert (token is not None) is (window is not None)
    assert world.outcomes() == ["transient" if window is None else "refreshed"]


@pytest.mark.slow
def test_r16_silence_leaves_time_for_the_window(world: World) -> None:
    """R16: a request without a response ends while the window is still open."""
    world.sign_in()
    world.hold()
    assert with_window(world, 2.0).get_valid_token("alice") == world.tokens()[0]
    assert world.posts == 2


def test_r16_it_is_asked_for_no_more_than_twice(world: World) -> None:
    """R16: one repetition."""
    world.sign_in()
    world.server.script(*[Drop(spent=False)] * 4)
    assert with_window(world, 30.0).get_valid_token("alice") is None
    assert world.posts == 2


# -- R17: a refresh token alone ----------------------------------------------------------------


@pytest.mark.parametrize("access_token", [None, "", "a\nb", 5, {"nested": "token"}], ids=repr)
@pytest.mark.parametrize("call", ["ensure_valid_token", "refresh_token"])
def test_r17_a_refresh_token_that_comes_alone_is_kept(
    world: World, manager: TokenManager, call: str, access_token: object
) -> None:
    """R17: a success without a usable access token."""
    world.sign_in()
    given: list[str] = []

    def change(body: dict[str, Any]) -> dict[str, Any]:
        given.append(body["refresh_token"])
        return {**body, "access_token": access_token}

    world.server.script(Transform(change))
    with pytest.raises(TransientRefreshError):
        getattr(manager, call)("alice")
    assert world.tokens()[1] == given[0]
    assert [account.state for account in manager.accounts()] == ["due"]
    assert manager.get_valid_token("alice") == world.tokens()[0]
    assert lives(world)


# -- R18: a gateway error ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_r18_a_5xx_may_have_spent_the_token_and_explains_its_death(
    world: World, manager: TokenManager, status: int
) -> None:
    """R18: a gateway lost the response of a provider that had rotated."""
    world.sign_in()
    world.server.script(Answer(status))
    world.server.revoke("alice")
    with pytest.raises(ReauthorizationRequired) as caught:
        manager.ensure_valid_token("alice")
    assert f"was answered HTTP {status}; the provider had already rotated the token" in str(
        caught.value
    )
    assert world.sql("SELECT outcome, maybe_spent FROM refreshes ORDER BY id") == [
        ("transient", 1),
        ("reauthorization", 0),
    ]


# -- R19: arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["ensure_valid_token", "refresh_token"])
@pytest.mark.parametrize("options", [{}, {"cache_ttl": 0}], ids=["cached", "stored"])
def test_r19_another_provider_is_refused_though_the_token_is_fresh(
    world: World, call: str, options: dict[str, Any]
) -> None:
    """R19: the account is bound to one provider."""
    saved = world.sign_in(expires_in=HOUR)
    other = world.server.provider("other")
    manager = world.manager(**options)
    assert manager.get_valid_token("alice", "test") == saved["access_token"]
    for provider in ("other", other):
        with pytest.raises(ProviderConfigurationError, match="bound to provider 'test'"):
            getattr(manager, call)("alice", provider)
        assert manager.get_valid_token("alice", provider) is None
    assert manager.get_valid_token("alice", "test") == saved["access_token"]
    assert world.posts == 0


def test_r19_serving_stale_tokens_serves_none_to_another_provider(world: World) -> None:
    """R19: nor is a stale token served for it."""
    world.sign_in(expires_in=100)
    manager = world.manager(serve_stale=True)
    assert manager.get_valid_token("alice", world.server.provider("other")) is None
    assert world.posts == 0


def test_r19_a_stored_token_that_expired_is_no_replacement(
    world: World, manager: TokenManager
) -> None:
    """R19: `rejected` wants one that differs and lives."""
    world.sign_in(expires_in=-1)
    new = manager.refresh_token("alice", rejected="another one")["access_token"]
    assert world.server.is_live(new)
    assert world.posts == 1


# -- R20: storms --------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [2 * HOUR, 1e9])
def test_r20_looking_further_ahead_than_a_token_lives_causes_no_storm(
    world: World, manager: TokenManager, ahead: float
) -> None:
    """R20: `within` and `min_ttl` count up to half the life of a refreshed token."""
    world.sign_in()
    for _ in range(10):
        list(manager.refresh_all(within=ahead))
        assert manager.ensure_valid_token("alice", min_ttl=ahead)
        world.clock.now += 60
    assert world.posts == 1
    world.clock.now += HOUR / 2
    list(manager.refresh_all(within=ahead))
    assert world.posts == 2


def test_r20_a_resource_that_always_refuses_causes_no_storm(
    world: World, manager: TokenManager
) -> None:
    """R20: a token that replaced a rejected one, and is rejected too, is not at fault."""
    rejected = world.sign_in(expires_in=HOUR)["access_token"]
    for _ in range(10):
        with Told() as told:
            rejected = manager.refresh_token("alice", rejected=rejected)["access_token"]
    assert any("is rejected, too" in record.getMessage() for record in told.records)
    assert world.posts == 1
    world.clock.now += 61
    assert manager.refresh_token("alice", rejected=rejected)["access_token"] != rejected
    assert world.posts == 2


def test_r20_a_token_rejected_soon_after_an_ordinary_refresh_is_replaced(
    world: World, manager: TokenManager
) -> None:
    """R20: it replaced none that was rejected."""
    world.sign_in()
    token = manager.get_valid_token("alice")
    assert manager.refresh_token("alice", rejected=token)["access_token"] != token
    assert world.posts == 2


# -- R21: the time-outs of others ------------------------------------------------------------------


def test_r21_a_timeout_of_the_application_is_not_taken_for_ours(
    world: World, manager: TokenManager
) -> None:
    """R21: a signal handler that raises TimeoutError, as the recipe with SIGALRM does."""
    world.sign_in()
    hold = world.hold()
    main = threading.main_thread().ident
    assert main is not None

    def alarm(*_: object) -> None:
        raise TimeoutError("of the application")

    def ring() -> None:
        assert hold.arrived.wait(SOON)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, alarm)
    try:
        ringing = Call(ring)
        with pytest.raises(TimeoutError, match="of the application"):
            manager.get_valid_token("alice")
        ringing.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    hold.release.set()
    assert manager.get_valid_token("alice") == world.tokens()[0]
    assert (world.posts, world.outcomes()) == (1, ["refreshed"])


# -- R24: what is told of accounts -------------------------------------------------------------


@pytest.mark.parametrize("when", ["after", "during"])
def test_r24_a_deleted_account_is_forgotten_by_the_history(
    world: World, manager: TokenManager, when: str
) -> None:
    """R24: its name goes with it, that of a refresh under way as well."""
    world.sign_in()
    hold = world.hold()
    call = Call(manager.refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    if when == "during":
        assert world.manager().delete_tokens("alice")
        hold.release.set()
        assert isinstance(call.error(), ReauthorizationRequired)
    else:
        hold.release.set()
        call.result()
        assert world.manager().delete_tokens("alice")
    manager.close()
    assert list(manager.history()) == []
    assert world.sql("SELECT count(*) FROM refreshes") == [(0,)]


def test_r24_the_same_refresh_token_under_two_names_is_warned_of(
    world: World, manager: TokenManager
) -> None:
    """R24: the first of them that is refreshed ends the login of the other."""
    tokens = world.sign_in()
    with Told() as told:
        manager.save_tokens("another name", tokens)
    [warning] = [r.getMessage() for r in told.records if r.levelno == logging.WARNING]
    assert "alice" in warning
    assert tokens["refresh_token"] not in warning


@pytest.mark.slow
def test_r24_a_holder_that_is_stopped_is_named(
    real: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R24: a process that was stopped (Ctrl-Z) holds the lock."""
    monkeypatch.setattr("tokenstore.lifecycle.request.BUSY", 0.1)
    real.sign_in()
    hold = real.hold()
    with process(real, 'tell(manager.get_valid_token("alice") is not None)') as user:
        assert hold.arrived.wait(SOON)
        os.kill(user.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TransientRefreshError) as caught:
                real.manager(timeout=0.1).ensure_valid_token("alice")
        finally:
            os.kill(user.pid, signal.SIGCONT)
        assert f"process {user.pid} on {socket.gethostname()}" in str(caught.value)
        hold.release.set()
        assert user.line() == "True"
        assert user.end() == 0
    assert real.posts == 1
    assert lives(real)


# -- what providers really give ------------------------------------------------------------------


def test_p6_a_token_without_an_end_is_used_until_it_is_rejected(
    world: World, manager: TokenManager
) -> None:
    """P6: GitHub's OAuth apps and Notion give neither expires_in nor a refresh token."""
    manager.save_tokens("alice", {"access_token": "for-ever", "expires_at": None}, provider="test")
    assert manager.get_valid_token("alice") == "for-ever"
    assert [account.state for account in manager.accounts()] == ["valid"]

    told: list[str] = []
    other = world.manager(on_reauthorization_required=lambda name, _: told.append(name))
    with pytest.raises(ReauthorizationRequired, match="rejected, and there is no refresh token"):
        other.refresh_token("alice", rejected="for-ever")
    assert told == ["alice"]
    assert [account.state for account in other.accounts()] == ["sign_in"]
    assert other.get_valid_token("alice") is None

    manager.save_tokens("alice", {"access_token": "another"}, provider="test")
    assert manager.get_valid_token("alice") == "another"
    assert world.posts == 0


def test_p9_the_answer_for_another_person_is_not_stored(
    world: World, manager: TokenManager
) -> None:
    """P9: a refresh does not change who signed in (OpenID Connect Core section 12.2)."""
    pin = id_token("person-1")
    world.sign_in(id_token=pin)
    before = world.row()
    world.server.script(Transform(lambda body: {**body, "id_token": id_token("person-2")}))
    with pytest.raises(ReauthorizationRequired, match="nothing was stored"):
        manager.ensure_valid_token("alice")
    after = world.row()
    assert (after["access_token"], after["refresh_token"]) == (
        before["access_token"],
        before["refresh_token"],
    )


@pytest.mark.parametrize("given", [None, "unreadable", ""])
def test_p9_an_id_token_that_says_nothing_does_not_erase_the_pin(
    world: World, manager: TokenManager, given: str | None
) -> None:
    """P9: otherwise the next answer could be anybody's."""
    pin = id_token("person-1")
    world.sign_in(id_token=pin)
    world.server.script(Transform(lambda body: {**body, "id_token": given}))
    assert manager.ensure_valid_token("alice")
    stored = manager.load_tokens("alice")
    assert stored is not None
    assert stored["id_token"] == pin


@pytest.mark.parametrize(
    "given",
    [
        {"id_token": None, "sub": "person-1"},
        {"id_token": None, "iss": None, "sub": ""},
        {"id_token": "TOKEN WITHOUT ISS"},
        {"id_token": "TOKEN WITHOUT SUB"},
    ],
    ids=str,
)
def test_p9_a_part_of_the_pin_does_not_replace_it(
    world: World, manager: TokenManager, given: dict[str, Any]
) -> None:
    """P9: the same subject of another issuer is another person."""
    pin = id_token("person-1")
    world.sign_in(id_token=pin)
    partial = {
        "TOKEN WITHOUT ISS": id_token("person-1", iss=None),
        "TOKEN WITHOUT SUB": id_token(""),
    }
    given = {name: partial.get(value, value) for name, value in given.items()}
    world.server.script(Transform(lambda body: {**body, **given}))
    assert manager.ensure_valid_token("alice")
    stored = manager.load_tokens("alice")
    assert stored is not None
    assert stored["id_token"] == pin


@pytest.mark.parametrize(
    ("claims", "is_stored"),
    [
        ({}, True),
        ({"aud": ["another", "tokenstore"]}, True),
        ({"aud": "another"}, False),
        ({"aud": None}, False),
        ({"nonce": "the first"}, True),
        ({"nonce": "another"}, False),
        ({"azp": "another"}, False),
        ({"nonce": ["the first"]}, False),
    ],
    ids=str,
)
def test_p9_an_id_token_for_another_sign_in_does_not_replace_the_pin(
    world: World, manager: TokenManager, claims: dict[str, Any], *, is_stored: bool
) -> None:
    """P9: audience, authorized party and nonce stay (OpenID Connect Core section 12.2)."""
    pin = id_token("person-1", nonce="the first")
    world.sign_in(id_token=pin)
    given = id_token("person-1", **claims)
    world.server.script(Transform(lambda body: {**body, "id_token": given}))
    assert manager.ensure_valid_token("alice") == world.tokens()[0]
    stored = manager.load_tokens("alice")
    assert stored is not None
    assert stored["id_token"] == (given if is_stored else pin)


def id_token(subject: str, **claims: Any) -> str:
    """Return an unsigned id_token, as it is stored from a response over TLS."""
    always = {"iss": "https://issuer.example", "sub": subject, "aud": "tokenstore"}
    parts = ['{"alg":"none"}', json.dumps(always | claims)]
    encoded = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, ""])

"""Several access tokens of one login: for scopes and resources, with one refresh token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, World, denied, of_sqlite, on_both_engines
from tests.helpers.stores import Process, holding, python
from tokenstore import (
    AccessToken,
    ClientRejectedError,
    InvalidTokenError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenManager,
    TokenPersistError,
    TransientRefreshError,
)
from tokenstore.models.targets import MAX_FURTHER_TOKENS, Target
from tokenstore.testing import Answer, Drop, Transform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = on_both_engines

HOUR = 3600.0
GRANTED = "files mail read"
API, FILES = "https://api.example.com", "https://files.example.com"
EVERY = {f"https://{number}.example.com" for number in range(MAX_FURTHER_TOKENS + 1)}


@pytest.fixture
def world(database: Path | str, tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, database, resources={API, FILES, *EVERY}) as world:
        yield world


def sign_in(world: World, **more: Any) -> dict[str, Any]:
    """Store a login whose own access token is valid for an hour."""
    tokens = {**world.server.sign_in("alice", scope=GRANTED), **more}
    world.manager().save_tokens("alice", tokens, provider="test")
    return tokens


def further(world: World) -> dict[str, str | None]:
    """Return the further access tokens that are stored, by target."""
    rows = world.sql("SELECT target, access_token FROM access_tokens WHERE account_name = 'alice'")
    return dict(rows)


# -- the good case ---------------------------------------------------------------------------------


def test_a_scope_gives_a_token_of_its_own_with_the_one_refresh_token(
    world: World, manager: TokenManager
) -> None:
    own = sign_in(world)
    token = manager.get_valid_token("alice", scope="mail")
    assert token is not None
    assert world.server.audience(token) == ("mail", ())
    assert world.server.requests[-1].params["refresh_token"] == own["refresh_token"]
    access, refresh, expires_at = world.tokens()
    assert (access, expires_at) == (own["access_token"], world.clock.now + HOUR)
    assert refresh != own["refresh_token"]
    assert manager.get_valid_token("alice") == own["access_token"]
    assert world.row()["refreshed_at"] is None
    assert world.posts == 1


def test_the_refresh_token_that_a_further_token_brought_is_used_by_all(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    tokens = [
        manager.get_valid_token("alice", scope="mail"),
        manager.get_valid_token("alice", resource=API),
        manager.refresh_token("alice")["access_token"],
        manager.get_valid_token("alice", scope="files", resource=FILES),
    ]
    assert [world.server.audience(token or "") for token in tokens] == [
        ("mail", ()),
        (GRANTED, (API,)),
        (GRANTED, ()),
        ("files", (FILES,)),
    ]
    assert all(world.server.is_live(token or "") for token in tokens)
    assert world.server.reuses == 0
    assert set(further(world)) == {"mail", f'resource="{API}"', f'files resource="{FILES}"'}
    loaded = manager.load_tokens("alice")
    assert loaded is not None
    assert loaded["scope"] == GRANTED


def test_a_server_that_does_not_rotate_keeps_its_refresh_token(
    database: Path | str, tmp_path: Path
) -> None:
    with World(tmp_path, database, rotate=False) as world:
        own = sign_in(world)
        manager = world.manager()
        for scope in ("mail", "read"):
            assert manager.get_valid_token("alice", scope=scope) is not None
        assert world.tokens()[:2] == (own["access_token"], own["refresh_token"])


def test_a_stored_token_is_used_by_every_manager_until_it_is_due(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    token = manager.get_valid_token("alice", scope="mail read")
    others = [manager, world.manager(), world.manager(cache_ttl=0)]
    assert {m.get_valid_token("alice", scope=["read", "mail"]) for m in others} == {token}
    assert {m.ensure_valid_token("alice", "test", scope="mail read") for m in others} == {token}
    assert world.posts == 1
    world.clock.now += HOUR - 299
    assert manager.get_valid_token("alice", scope="read mail") != token
    assert world.posts == 2


def test_a_token_in_memory_needs_no_database(world: World, manager: TokenManager) -> None:
    sign_in(world)
    token = manager.get_valid_token("alice", scope="mail")
    assert manager.get_valid_token("alice", scope="mail") == token
    world.sql("DELETE FROM access_tokens")
    assert manager.get_valid_token("alice", scope="mail") == token
    assert manager.get_valid_token("alice", "test", scope="mail") == token
    with pytest.raises(ProviderConfigurationError, match="bound to provider 'test'"):
        manager.ensure_valid_token("alice", "other", scope="mail")
    assert world.posts == 1


def test_an_access_token_is_told_with_what_is_known_of_it(
    world: World, manager: TokenManager
) -> None:
    own = sign_in(world)
    found = manager.get_access_token("alice")
    assert found == AccessToken(
        token=own["access_token"],
        token_type="Bearer",
        expires_at=world.clock.now + HOUR,
        scope=GRANTED,
        account_name="alice",
    )
    of_mail = manager.get_access_token("alice", scope="mail")
    assert (of_mail.scope, of_mail.expires_at) == ("mail", world.clock.now + HOUR)
    assert of_mail.token not in repr(of_mail)
    assert manager.get_access_token("alice", scope="mail") == of_mail
    with pytest.raises(AttributeError):
        of_mail.token = "x"  # type: ignore[misc]


def test_the_scope_of_a_response_without_one_is_what_was_requested(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    world.server.script(Answer(200, {"access_token": "a", "token_type": "bearer"}))
    found = manager.get_access_token("alice", scope="mail")
    assert (found.token, found.token_type, found.scope) == ("a", "bearer", "mail")


def test_audience_is_the_parameter_where_a_provider_calls_it_so(world: World) -> None:
    provider = world.server.provider(resource_parameter="audience", scope=GRANTED)
    manager = world.manager(providers={"test": provider})
    sign_in(world)
    token = manager.ensure_valid_token("alice", resource=API)
    params = world.server.requests[-1].params
    assert (params["audience"], params["scope"], "resource" in params) == (API, GRANTED, False)
    assert world.server.audience(token) == (GRANTED, (API,))


def test_several_resources_are_one_token(world: World, manager: TokenManager) -> None:
    sign_in(world)
    token = manager.ensure_valid_token("alice", resource=[FILES, API])
    assert world.server.audience(token) == (GRANTED, (API, FILES))
    assert manager.ensure_valid_token("alice", resource=[API, FILES]) == token


@pytest.mark.parametrize("call", ["refresh_token", "get_valid_token", "get_access_token"])
def test_a_bad_argument_is_an_error_and_sends_nothing(
    world: World, manager: TokenManager, call: str
) -> None:
    sign_in(world)
    with pytest.raises(InvalidTokenError):
        getattr(manager, call)("alice", scope="")
    assert world.posts == 0


# -- forced and rejected ---------------------------------------------------------------------------


def test_a_forced_refresh_is_of_the_target_and_gives_no_refresh_token(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    first = manager.refresh_token("alice", scope="mail")
    second = manager.refresh_token("alice", scope="mail")
    assert first["access_token"] != second["access_token"]
    assert set(second) == {"access_token", "token_type", "expires_at", "scope"}
    assert manager.get_valid_token("alice", scope="mail") == second["access_token"]


def test_a_rejected_token_is_replaced_once(world: World, manager: TokenManager) -> None:
    own = sign_in(world)
    token = manager.ensure_valid_token("alice", scope="mail")
    for _ in range(2):
        renewed = manager.refresh_token("alice", rejected=token, scope="mail")["access_token"]
        assert renewed != token
    assert world.posts == 2
    # The account's own token is not the one that was rejected.
    assert manager.refresh_token("alice", rejected=token)["access_token"] == own["access_token"]
    assert world.posts == 2


def test_a_token_that_replaced_a_rejected_one_and_is_rejected_is_no_reason_to_refresh_again(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    first = manager.ensure_valid_token("alice", scope="mail")
    second = manager.refresh_token("alice", rejected=first, scope="mail")["access_token"]
    same = manager.refresh_token("alice", rejected=second, scope="mail")["access_token"]
    assert same == second
    assert world.posts == 2


def test_a_hook_gets_the_tokens_of_the_account(world: World) -> None:
    own = sign_in(world)
    told: list[dict[str, Any]] = []
    manager = world.manager(on_refreshed=lambda _, tokens: told.append(tokens))
    manager.refresh_token("alice", scope="mail")
    (tokens,) = told
    assert tokens["access_token"] == own["access_token"]
    assert tokens["refresh_token"] == world.tokens()[1] != own["refresh_token"]


def test_the_history_says_which_target(world: World, manager: TokenManager) -> None:
    sign_in(world)
    manager.get_valid_token("alice", scope="read mail", resource=API)
    manager.refresh_token("alice")
    entries = [(entry.target, entry.outcome) for entry in manager.history("alice")]
    assert entries == [(None, "refreshed"), (f'mail read resource="{API}"', "refreshed")]


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error"),
    [({"scope": "admin"}, "invalid_scope"), ({"resource": "urn:no"}, "invalid_target")],
)
def test_a_refused_target_is_not_a_failure_of_the_account(
    world: World, manager: TokenManager, asked: dict[str, Any], error: str
) -> None:
    own = sign_in(world)
    for _ in range(2):  # the second one waits before it asks again
        with pytest.raises(ClientRejectedError) as caught:
            manager.ensure_valid_token("alice", **asked)
        assert caught.value.error == error
    assert world.posts == 1
    (account,) = manager.accounts()
    assert (account.state, account.last_error) == ("valid", None)
    assert manager.get_valid_token("alice") == own["access_token"]
    assert manager.get_valid_token("alice", scope="mail") is not None
    assert manager.refresh_token("alice")["access_token"] != own["access_token"]
    (refused,) = [each for each in manager._further("alice") if each.failure]
    assert refused.failure is not None
    assert refused.failure.error == error


def test_a_refusal_keeps_the_token_that_is_stored_for_the_target(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    token = manager.ensure_valid_token("alice", scope="mail")
    world.server.script(denied("invalid_scope"))
    with pytest.raises(ClientRejectedError):
        manager.refresh_token("alice", scope="mail")
    assert manager.get_valid_token("alice", scope="mail") == token
    assert manager.refresh_token("alice", scope="mail")["access_token"] != token
    assert not [each for each in manager._further("alice") if each.failure]


def test_consent_that_is_missing_for_a_target_is_no_end_of_the_login(
    world: World,
) -> None:
    """Microsoft answers so for a scope that the user has not consented to."""
    own = sign_in(world)
    told: list[str] = []
    manager = world.manager(on_reauthorization_required=lambda name, _: told.append(name))
    text = "AADSTS65001: The user or administrator has not consented to use the application"
    world.server.script(Answer(400, {"error": "invalid_grant", "error_description": text}))
    with pytest.raises(ClientRejectedError):
        manager.ensure_valid_token("alice", scope="mail")
    assert manager.get_valid_token("alice") == own["access_token"]
    assert next(manager.accounts()).state == "valid"
    assert told == []


def test_a_login_that_is_over_is_over_for_all(world: World, manager: TokenManager) -> None:
    sign_in(world)
    world.server.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        manager.ensure_valid_token("alice", scope="mail")
    assert next(manager.accounts()).state == "sign_in"
    with pytest.raises(ReauthorizationRequired):
        manager.ensure_valid_token("alice", resource=API)
    assert world.posts == 1


def test_a_provider_that_asks_to_wait_is_not_asked_for_another_target(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    world.server.script(Answer(503, headers={"Retry-After": "60"}))
    targets: list[dict[str, Any]] = [{"scope": "mail"}, {"resource": API}]
    for asked in targets:
        with pytest.raises(TransientRefreshError) as caught:
            manager.ensure_valid_token("alice", **asked)
        assert caught.value.retry_after == 60
    assert world.posts == 1


def test_a_stale_token_is_served_if_so_configured(world: World) -> None:
    sign_in(world)
    manager = world.manager(serve_stale=True)
    token = manager.ensure_valid_token("alice", scope="mail")
    world.clock.now += HOUR - 60
    world.server.script(Drop(spent=False), Drop(spent=False), Drop(spent=False))
    assert manager.ensure_valid_token("alice", scope="mail") == token
    assert manager.get_access_token("alice", scope="mail").token == token


def test_without_a_refresh_token_there_is_no_further_token(
    world: World, manager: TokenManager
) -> None:
    own = sign_in(world, refresh_token=None)
    with pytest.raises(ReauthorizationRequired, match="no refresh token"):
        manager.ensure_valid_token("alice", scope="mail")
    assert manager.get_valid_token("alice") == own["access_token"]
    assert manager.get_valid_token("nobody", scope="mail") is None


def test_a_damaged_token_is_obtained_anew(world: World, manager: TokenManager) -> None:
    sign_in(world)
    token = manager.ensure_valid_token("alice", scope="mail")
    world.sql("UPDATE access_tokens SET access_token = 'damaged'")
    assert list(manager._further("alice")) == []
    found = world.manager().ensure_valid_token("alice", scope="mail")
    assert found not in {token, "damaged"}
    assert world.server.is_live(found)


def test_a_response_without_an_access_token_stores_the_refresh_token(
    world: World, manager: TokenManager
) -> None:
    own = sign_in(world)
    world.server.script(Answer(200, {"refresh_token": "next"}))
    with pytest.raises(TransientRefreshError, match="new refresh token"):
        manager.ensure_valid_token("alice", scope="mail")
    assert world.tokens()[:2] == (own["access_token"], "next")
    assert further(world) == {"mail": None}


def test_a_token_that_cannot_be_stored_is_in_the_error_and_is_stored_later(
    world: World, impatient: TokenManager
) -> None:
    own = sign_in(world)
    world.refuse("INSERT ON access_tokens")
    with pytest.raises(TokenPersistError) as caught:
        impatient.get_valid_token("alice", scope="mail")
    given = caught.value.tokens or {}
    assert world.server.audience(given["access_token"]) == ("mail", ())
    assert given["refresh_token"] != own["refresh_token"]
    assert world.tokens()[1] == own["refresh_token"]  # all or nothing
    world.accept()
    impatient.close()
    assert further(world) == {"mail": given["access_token"]}
    assert world.tokens()[:2] == (own["access_token"], given["refresh_token"])


# -- what ends them --------------------------------------------------------------------------------


def test_saving_tokens_drops_the_further_ones(world: World, manager: TokenManager) -> None:
    own = sign_in(world)
    token = manager.ensure_valid_token("alice", scope="mail")
    manager.save_tokens("alice", {**own, "refresh_token": world.tokens()[1]})
    assert further(world) == {}
    assert manager.ensure_valid_token("alice", scope="mail") != token


def test_an_import_that_keeps_the_account_keeps_them(world: World, manager: TokenManager) -> None:
    sign_in(world)
    manager.ensure_valid_token("alice", scope="mail")
    record = manager._repository.record("alice")
    assert record is not None
    assert not manager._repository.put("alice", record.tokens, existing="keep")
    assert set(further(world)) == {"mail"}


def test_deleting_an_account_deletes_them(world: World, manager: TokenManager) -> None:
    sign_in(world)
    manager.ensure_valid_token("alice", scope="mail")
    assert manager.delete_tokens("alice")
    assert further(world) == {}
    assert manager.get_valid_token("alice", scope="mail") is None


@of_sqlite
@pytest.mark.parametrize("end", ["delete", "save"])
def test_the_bytes_of_a_dropped_token_leave_the_files(
    world: World, manager: TokenManager, tmp_path: Path, end: str
) -> None:
    sign_in(world)
    token = manager.ensure_valid_token("alice", scope="mail")
    assert holding(tmp_path, token)
    if end == "delete":
        manager.delete_tokens("alice")
    else:
        manager.save_tokens("alice", {"access_token": "new"})
    assert holding(tmp_path, token) == []


def test_a_sign_out_revokes_all(world: World, manager: TokenManager) -> None:
    own = sign_in(world)
    further_ones = [
        manager.ensure_valid_token("alice", scope="mail"),
        manager.ensure_valid_token("alice", resource=API),
    ]
    assert manager.logout("alice")
    sent = [request.params["token"] for request in world.server.requests_at("/revoke")]
    assert set(sent[1:]) == {own["access_token"], *further_ones}
    assert further(world) == {}


def test_a_sign_in_drops_them(world: World, manager: TokenManager) -> None:
    sign_in(world)
    token = manager.ensure_valid_token("alice", scope="mail")
    manager.login("alice", prompt=lambda prompt: world.server.visit(prompt.url), force=True)
    assert further(world) == {}
    assert token


def test_an_account_keeps_32_and_the_longest_expired_leave_first(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    resources = sorted(EVERY)
    for resource in resources:
        manager.ensure_valid_token("alice", resource=resource)
        world.clock.now += 1
    found = set(further(world))
    assert len(found) == MAX_FURTHER_TOKENS
    assert found == {Target((), (resource,)).text for resource in resources[1:]}
    # One that expires before all others stays, having just been obtained.
    world.server.script(Answer(200, {"access_token": "short", "expires_in": 1}))
    manager.refresh_token("alice", resource=API)
    assert len(further(world)) == MAX_FURTHER_TOKENS
    assert further(world)[f'resource="{API}"'] == "short"


def test_what_is_saved_meanwhile_supersedes_a_further_token(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    hold = world.hold()
    call = Call(manager.refresh_token, "alice", scope="mail")
    assert hold.arrived.wait(SOON)
    new = sign_in(world)
    hold.release.set()
    token = call.result()["access_token"]
    assert world.outcomes() == ["superseded", "refreshed"]
    assert world.tokens()[0] == new["access_token"]
    assert further(world) == {"mail": token}
    assert world.server.requests[-1].params["refresh_token"] == new["refresh_token"]


# -- several at once -------------------------------------------------------------------------------


def test_two_threads_with_two_targets_send_two_requests_one_after_the_other(
    world: World, manager: TokenManager
) -> None:
    sign_in(world)
    hold = world.hold()
    first = Call(manager.ensure_valid_token, "alice", scope="mail")
    assert hold.arrived.wait(SOON)
    second = Call(manager.ensure_valid_token, "alice", resource=API).waits()
    same = Call(manager.ensure_valid_token, "alice", scope="mail").waits()
    assert world.posts == 1
    hold.release.set()
    assert first.result() == same.result() != second.result()
    sent = [request.params["refresh_token"] for request in world.server.requests]
    assert len(sent) == len(set(sent)) == 2
    assert world.server.reuses == 0


PROCESS = """
from tokenstore import Provider, TokenManager
provider = Provider("test", *sys.argv[2:4], client_secret=sys.argv[4])
manager = TokenManager(sys.argv[1], providers={"test": provider}, clock=lambda: float(sys.argv[5]))
def get(target):
    return manager.ensure_valid_token("alice", **target)
"""


def arguments(world: World) -> tuple[object, ...]:
    provider = world.server.provider()
    return (
        world.database,
        provider.token_endpoint,
        provider.client_id,
        provider.client_secret,
        world.clock.now,
    )


@pytest.mark.slow
def test_two_processes_with_two_targets_never_send_the_same_refresh_token(world: World) -> None:
    sign_in(world)
    code = PROCESS + "tell('ready'); wait(); tell(get(eval(sys.argv[6])))"
    targets: list[dict[str, str]] = [{"scope": "mail"}, {"resource": API}, {}, {"scope": "mail"}]
    hold = world.hold()
    with (
        Process(code, *arguments(world), targets[0]) as one,
        Process(code, *arguments(world), targets[1]) as two,
    ):
        for process in (one, two):
            assert process.line() == "ready"
        one.go()
        assert hold.arrived.wait(SOON)
        two.go()
        hold.release.set()
        tokens = one.line(), two.line()
    assert [world.server.audience(token) for token in tokens] == [("mail", ()), (GRANTED, (API,))]
    sent = [request.params["refresh_token"] for request in world.server.requests]
    assert len(sent) == len(set(sent)) == 2
    assert world.server.reuses == 0


@pytest.mark.slow
def test_a_process_that_is_killed_before_it_stores_a_further_token_has_told_of_it(
    world: World, manager: TokenManager
) -> None:
    own = sign_in(world)
    hold = world.hold()
    with Process(PROCESS + "get({'scope': 'mail'})", *arguments(world)) as process:
        assert hold.arrived.wait(SOON)
        (begun,) = manager.history()
        assert (begun.target, begun.outcome) == ("mail", None)
        process.kill()
    hold.release.set()
    assert manager.get_valid_token("alice") == own["access_token"]
    # The provider has rotated the token, and the new one is lost.
    with pytest.raises(ReauthorizationRequired, match="interrupted"):
        manager.ensure_valid_token("alice", resource=API)
    assert world.outcomes() == ["interrupted", "reauthorization"]


@pytest.mark.slow
def test_a_forked_child_has_what_its_parent_had_and_refreshes_the_rest(world: World) -> None:
    sign_in(world)
    code = PROCESS + (
        "mine = get({'scope': 'mail'})\n"
        "def work(number):\n"
        "    assert get({'scope': 'mail'}) == mine\n"
        "    tell(get({'resource': sys.argv[6]}))\n"
        "assert forked(3, work) == [0, 0, 0]\n"
    )
    tokens = python(code, *arguments(world), API).split()
    assert len(tokens) == 3
    assert len(set(tokens)) == 1
    assert world.posts == 2
    assert world.server.reuses == 0


@pytest.mark.slow
def test_a_begin_without_an_end_is_tried_once_for_any_target(
    world: World, manager: TokenManager
) -> None:
    own = sign_in(world)
    code = """
from tokenstore.models.targets import Target
child = os.fork()
if not child:
    repository = TokenRepository(sys.argv[1])
    with repository.refresh_lock("alice", timeout=1):
        target = Target(("mail",))
        record = repository.record("alice", target)
        repository.journal.begin(
            record, provider="test", reason="due", longest=60, target=target
        )
        os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
"""
    python(code, world.database)
    assert manager.get_valid_token("alice", scope="read") is not None
    assert world.tokens()[0] == own["access_token"]
    assert world.outcomes() == ["interrupted", "refreshed"]


# -- what a response to a target may say -----------------------------------------------------------


@pytest.mark.parametrize("odd", ["\ud800", "a\x00b", 5, ["\ud800"]], ids=repr)
@pytest.mark.parametrize("name", ["token_type", "scope"])
def test_an_odd_field_of_a_response_costs_no_login(
    world: World, manager: TokenManager, name: str, odd: object
) -> None:
    sign_in(world)
    world.server.script(Transform(lambda body: json.dumps({**body, name: odd})))

    token = manager.get_access_token("alice", scope="mail")

    assert world.server.is_live(token.token)
    assert manager.refresh_token("alice")["access_token"]  # the rotated refresh token was stored
    assert world.server.reuses == 0


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": "access_denied", "error_description": "Service not enabled within domain"},
        {"error": "interaction_required"},
        {"error": "unauthorized_client"},
        {"error": "invalid_grant", "error_description": "AADSTS50076: multi-factor required"},
    ],
    ids=lambda refusal: refusal["error"],
)
def test_a_policy_for_one_target_leaves_the_account_alone(
    world: World, manager: TokenManager, refusal: dict[str, str]
) -> None:
    sign_in(world)
    world.server.script(Answer(400, refusal))
    with pytest.raises(ClientRejectedError):
        manager.get_access_token("alice", scope="mail")

    [account] = manager.accounts()
    assert (account.state, account.last_error) == ("valid", None)
    world.clock.now += HOUR
    assert manager.get_valid_token("alice") is not None
    world.clock.now += 2 * HOUR  # after the longest back-off
    assert manager.get_valid_token("alice", scope="mail") is not None

from __future__ import annotations

import errno
import math
import re
import sys
from contextlib import suppress
from socket import AF_INET, AF_INET6, create_server
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.helpers.refreshes import SOON, Call, Told, World, denied
from tests.helpers.sign_in import (
    Tampering,
    Visitor,
    begin,
    callback,
    claims_of,
    load,
    nobody,
    query_of,
    with_claims,
)
from tokenstore import (
    ClientRejectedError,
    Prompt,
    Provider,
    ProviderConfigurationError,
    SignInError,
    StorageError,
    TokenPersistError,
    TransientRefreshError,
    WrongAccountError,
)
from tokenstore.oauth.flows.loopback import RedirectServer
from tokenstore.testing import Answer, Drop, Transform, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refused(world: World, prompt: Callable[[Prompt], None], **options: Any) -> SignInError:
    """Return the error of a failed sign-in, after checking that nothing was stored."""
    before = world.manager().load_tokens("alice")
    with pytest.raises(SignInError) as caught:
        world.manager().login("alice", "test", prompt=prompt, **options)
    assert world.manager().load_tokens("alice") == before
    assert (caught.value.account_name, caught.value.provider) == ("alice", "test")
    assert str(caught.value).startswith("alice: ")
    return caught.value


# -- a sign-in that succeeds ----------------------------------------------------------------------


def test_a_sign_in_stores_tokens_that_work(world: World) -> None:
    visitor = Visitor(world)
    manager = world.manager()
    tokens = manager.login("alice", "test", prompt=visitor)

    assert manager.load_tokens("alice") == tokens
    assert tokens["expires_at"] == world.clock.now + 3600
    assert world.server.is_live(tokens["access_token"])
    assert claims_of(tokens["id_token"])["sub"] == "alice"
    assert manager.get_valid_token("alice") == tokens["access_token"]
    assert manager.refresh_token("alice")["access_token"] != tokens["access_token"]
    [account] = manager.accounts()
    assert (account.provider, account.state) == ("test", "valid")
    page = visitor.page
    assert page.status == 200
    assert "Signed in" in page.text


def test_the_requests_are_those_of_the_standards(world: World) -> None:
    visitor = Visitor(world)
    world.manager().login("alice", "test", scope="mail openid", prompt=visitor)
    [prompt] = visitor.prompts
    asked, [sent] = query_of(prompt.url), world.server.requests

    assert {**asked, "state": 0, "nonce": 0, "code_challenge": 0} == {
        "response_type": "code",
        "client_id": "tokenstore",
        "redirect_uri": prompt.redirect_uri,
        "scope": "openid mail",
        "code_challenge_method": "S256",
        "state": 0,
        "nonce": 0,
        "code_challenge": 0,
    }
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/callback/test", str(prompt.redirect_uri))
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    assert sent.params["grant_type"] == "authorization_code"
    assert sent.params["redirect_uri"] == prompt.redirect_uri
    assert len(sent.params["code_verifier"]) >= 43


def test_nothing_of_a_sign_in_is_used_twice(world: World) -> None:
    visitor = Visitor(world)
    for _ in range(2):
        world.manager().login("alice", "test", prompt=visitor)
    first, second = (query_of(prompt.url) for prompt in visitor.prompts)
    for name in ("state", "nonce", "code_challenge"):
        assert first[name] != second[name]


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
def test_every_kind_of_client_signs_in(tmp_path: Path, method: str) -> None:
    secret = None if method == "none" else "p+a/b=:%é€"
    settings = {"client_secret": secret, "token_endpoint_auth_method": method}
    with World(tmp_path, **settings) as world:
        tokens = world.manager().login("alice", "test", prompt=Visitor(world))
        assert claims_of(tokens["id_token"])["aud"] == "tokenstore"
        assert world.manager().refresh_token("alice")


def test_a_provider_needs_only_an_issuer_and_a_client(world: World) -> None:
    secret = world.server.provider().client_secret
    ours = Provider("ours", None, "tokenstore", client_secret=secret, issuer=world.server.issuer)
    visitor = Visitor(world)
    manager = world.manager(providers={"ours": ours})
    tokens = manager.login("alice", "ours", prompt=visitor)
    assert query_of(visitor.prompts[0].url)["scope"] == "openid"
    assert claims_of(tokens["id_token"])["iss"] == world.server.issuer
    # The metadata says that the iss parameter is always sent.
    with pytest.raises(SignInError, match="has no 'iss'"):
        manager.login("alice", prompt=Tampering(world, lambda params: params.pop("iss")))


def test_an_account_signs_in_at_its_provider(world: World) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    assert world.manager().login("alice", prompt=Visitor(world))


def test_parameters_of_the_provider_are_added_and_replace_none(world: World) -> None:
    params = {"prompt": "consent", "access_type": "offline", "state": "x", "code_challenge": "y"}
    provider = world.server.provider(scope="a b", authorization_params=params)
    manager = world.manager(providers={"test": provider})
    begun = begin(manager, "alice@example.com", timeout=0.01)
    asked = query_of(begun.prompt.url)
    assert (asked["prompt"], asked["access_type"]) == ("consent", "offline")
    assert (asked["scope"], asked["login_hint"]) == ("openid a b", "alice@example.com")
    assert asked["state"] != "x"
    assert len(asked["code_challenge"]) == 43
    assert isinstance(begun.call.error(), SignInError)


def test_a_sign_in_calls_on_recovered_for_an_account_that_needed_it(world: World) -> None:
    world.sign_in("alice")
    world.server.revoke("alice")
    recovered: list[str] = []
    manager = world.manager(on_recovered=recovered.append)
    assert manager.get_valid_token("alice") is None
    manager.login("alice", prompt=Visitor(world))
    manager.login("alice", prompt=Visitor(world))
    assert recovered == ["alice"]
    assert manager.get_valid_token("alice") is not None


def test_a_malformed_expires_in_does_not_lose_the_sign_in(world: World) -> None:
    world.server.script(Transform(lambda answer: answer | {"expires_in": "soon"}))
    tokens = world.manager().login("alice", "test", prompt=Visitor(world))
    assert tokens["expires_at"] == world.clock.now + 3600


# -- a refresh token, or none ---------------------------------------------------------------------


def test_a_sign_in_without_a_refresh_token_logs_a_warning_with_a_remedy(tmp_path: Path) -> None:
    with World(tmp_path, offline_access=True) as world, Told() as told:
        tokens = world.manager().login("alice", "test", prompt=Visitor(world))
        assert "refresh_token" not in tokens
        [warning] = [
            r.getMessage() for r in told.records if r.name.startswith("tokenstore.lifecycle")
        ]
        assert "no refresh token" in warning
        assert "offline_access" in warning
        scope = "offline_access"
        assert "refresh_token" in world.manager().login("alice", scope=scope, prompt=Visitor(world))


def test_the_same_user_keeps_a_refresh_token_that_works(tmp_path: Path) -> None:
    with World(tmp_path, offline_access=True) as world:
        manager = world.manager()
        first = manager.login("alice", "test", scope="offline_access", prompt=Visitor(world))
        second = manager.login("alice", prompt=Visitor(world))
        assert second["refresh_token"] == first["refresh_token"]
        assert second["access_token"] != first["access_token"]
        assert manager.refresh_token("alice")


@pytest.mark.parametrize("given", ["", 7, [], {}, None])
def test_an_invalid_refresh_token_counts_as_none(world: World, given: object) -> None:
    world.server.script(Transform(lambda answer: answer | {"refresh_token": given}))
    with Told() as told:
        assert world.manager().login("alice", "test", prompt=Visitor(world))
    assert any("no refresh token" in record.getMessage() for record in told.records)
    assert world.tokens()[1] is None


def test_a_missing_consent_for_offline_access_is_logged(world: World) -> None:
    world.server.script(Transform(lambda answer: answer | {"refresh_token": None}))
    with Told() as told:
        scope = "openid offline_access"
        assert world.manager().login("alice", "test", scope=scope, prompt=Visitor(world))
    assert any("only with prompt = consent" in record.getMessage() for record in told.records)


@pytest.mark.parametrize("why", ["revoked", "another user", "another provider"])
def test_another_refresh_token_is_not_kept(tmp_path: Path, why: str) -> None:
    with World(tmp_path, offline_access=True) as world:
        both = {"test": world.server.provider(), "other": world.server.provider("other")}
        manager = world.manager(providers=both)
        manager.login("alice", "test", scope="offline_access", prompt=Visitor(world))
        if why == "revoked":
            world.server.revoke("alice")
            with pytest.raises(Exception, match="invalid_grant"):
                manager.refresh_token("alice")
        person = "bob" if why == "another user" else "alice"
        provider = "other" if why == "another provider" else None
        tokens = manager.login("alice", provider, force=True, prompt=Visitor(world, person))
        assert "refresh_token" not in tokens


def test_a_refresh_token_of_another_client_is_not_kept(tmp_path: Path) -> None:
    with World(tmp_path, offline_access=True) as world:
        manager = world.manager()
        first = manager.login("alice", "test", scope="offline_access", prompt=Visitor(world))
        manager.save_tokens("alice", first | {"client_id": "another"})
        assert "refresh_token" not in manager.login("alice", prompt=Visitor(world))


def test_a_sign_in_waits_for_a_refresh_that_uses_the_token_it_would_keep(tmp_path: Path) -> None:
    with World(tmp_path, offline_access=True) as world:
        manager = world.manager()
        manager.login("alice", "test", scope="offline_access", prompt=Visitor(world))
        hold = world.hold()
        refreshing = Call(manager.refresh_token, "alice")
        assert hold.arrived.wait(SOON)
        signing_in = Call(manager.login, "alice", prompt=Visitor(world)).waits()
        hold.release.set()
        assert refreshing.result()
        assert signing_in.result()["refresh_token"] == world.tokens()[1]
        assert manager.refresh_token("alice")
        assert world.server.reuses == 0


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, 1e300])
def test_a_timeout_must_be_positive_and_finite(world: World, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        world.manager().login("alice", "test", timeout=timeout, prompt=Visitor(world))


@pytest.mark.parametrize("scope", ["mail calendar", ["mail", "calendar"], ("mail calendar",)])
def test_scopes_are_a_string_or_strings(world: World, scope: Any) -> None:
    assert world.manager().login("a", "test", scope=scope, prompt=Visitor(world))["scope"] == (
        "openid mail calendar"
    )


@pytest.mark.parametrize(
    "arguments",
    [{"scope": 7}, {"scope": ["mail", 7]}, {"scope": b"mail"}, {"timeout": "5m"}],
    ids=str,
)
def test_arguments_of_a_wrong_type_are_named(world: World, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{min(arguments)}: expected .*, got (int|bytes|str)"):
        world.manager().login("alice", "test", prompt=nobody, **arguments)


# -- the right user -------------------------------------------------------------------------------


def test_a_different_user_is_refused_and_their_tokens_are_revoked(world: World) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    row = world.row()
    visitor = Visitor(world, "bob")
    error = refused(world, visitor)

    assert isinstance(error, WrongAccountError)
    assert "bob@example.com" in str(error)
    assert "alice@example.com" in str(error)
    assert world.row() == row
    page = visitor.page
    assert page.status == 400
    assert "Different user" in page.text
    assert "nothing was stored." in page.text
    assert "force" not in page.text  # only the program can use it
    assert [r.params["token_type_hint"] for r in world.server.requests_at("/revoke")] == [
        "refresh_token",
        "access_token",
    ]
    assert not any(
        world.server.is_live(r.params["token"]) for r in world.server.requests_at("/revoke")
    )
    assert world.server.is_live(row["access_token"])


def test_a_user_with_an_account_of_another_name_stays_signed_in(world: World) -> None:
    manager = world.manager()
    manager.login("alice", "test", prompt=Visitor(world))
    bob = manager.login("bob", "test", prompt=Visitor(world, "bob"))
    assert isinstance(refused(world, Visitor(world, "bob")), WrongAccountError)
    assert world.server.requests_at("/revoke") == []
    assert world.server.is_live(bob["access_token"])


def test_nothing_is_revoked_if_an_account_may_belong_to_that_user(world: World) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    world.sign_in("bob")  # its user is unknown
    assert isinstance(refused(world, Visitor(world, "bob")), WrongAccountError)
    assert world.server.requests_at("/revoke") == []


def test_a_different_user_is_refused_also_without_revocation(world: World) -> None:
    provider = world.server.provider(revocation_endpoint=None)
    manager = world.manager(providers={"test": provider})
    manager.login("alice", "test", prompt=Visitor(world))
    with pytest.raises(WrongAccountError):
        manager.login("alice", prompt=Visitor(world, "bob"))


def test_a_failed_revocation_does_not_hide_the_error(world: World) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    world.server.script(Answer(503), path="/revoke")
    assert isinstance(refused(world, Visitor(world, "bob")), WrongAccountError)


def test_force_allows_a_different_user(world: World) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    tokens = world.manager().login("alice", force=True, prompt=Visitor(world, "bob"))
    assert claims_of(tokens["id_token"])["sub"] == "bob"
    assert world.tokens()[0] == tokens["access_token"]
    assert isinstance(refused(world, Visitor(world, "alice")), WrongAccountError)


def test_the_same_subject_of_another_issuer_is_a_different_user(world: World) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    other = world.server.provider(issuer=None, sign_in_scope="openid")
    world.server.script(with_claims(iss="https://other.example"))
    manager = world.manager(providers={"test": other})
    with pytest.raises(WrongAccountError):
        manager.login("alice", prompt=Visitor(world))


@pytest.mark.parametrize(
    "known",
    [{"sub": "alice"}, {"sub": "alice", "iss": "ISSUER"}],
    ids=["sub", "sub and iss"],
)
def test_stored_fields_identify_the_user_without_an_id_token(
    world: World, known: dict[str, str]
) -> None:
    known = {name: value.replace("ISSUER", world.server.issuer) for name, value in known.items()}
    world.sign_in("alice", **known)
    assert isinstance(refused(world, Visitor(world, "bob")), WrongAccountError)
    assert world.manager().login("alice", prompt=Visitor(world))


def test_a_first_sign_in_requires_the_user_of_the_address(world: World) -> None:
    visitor = Visitor(world, "bob")
    with pytest.raises(WrongAccountError) as caught:
        world.manager().login("alice@example.com", "test", prompt=visitor)
    said = str(caught.value)
    assert said.startswith("alice@example.com: signed in as bob@example.com, but")
    assert "Different user" in visitor.page.text
    assert world.manager().load_tokens("alice@example.com") is None
    revoked = [request.params["token"] for request in world.server.requests_at("/revoke")]
    assert revoked
    assert not any(map(world.server.is_live, revoked))


@pytest.mark.parametrize("name", ["alice@example.com", "Alice@Example.COM"])
def test_a_first_sign_in_of_the_right_address_is_stored_without_a_warning(
    world: World, name: str
) -> None:
    with Told() as told:
        assert world.manager().login(name, "test", prompt=Visitor(world))
    assert [record for record in told.records if record.levelname == "WARNING"] == []


def test_force_stores_a_first_sign_in_of_another_address(world: World) -> None:
    name = "team@example.com"
    manager = world.manager()
    assert manager.login(name, "test", force=True, prompt=Visitor(world))
    assert manager.login(name, prompt=Visitor(world))  # the user is known by now
    with pytest.raises(WrongAccountError):
        manager.login(name, prompt=Visitor(world, "bob"))


@pytest.mark.parametrize(
    ("claims", "is_stored"),
    [
        ({"email": None}, True),
        ({"email": None, "preferred_username": "bob"}, True),
        ({"email": None, "preferred_username": "alice@example.com"}, True),
        ({"email": None, "preferred_username": "bob@example.com"}, False),
        ({"email": "a.smith@example.com", "upn": "alice@example.com"}, True),
        ({"email_verified": False}, True),
        ({"email": "bob@example.com", "email_verified": False}, False),
        ({"email": 7}, True),
    ],
    ids=str,
)
def test_every_claim_with_an_address_is_compared(
    world: World, claims: dict[str, object], *, is_stored: bool
) -> None:
    world.server.script(with_claims(**claims))
    manager = world.manager()
    with Told() as told, suppress(WrongAccountError):
        manager.login("alice@example.com", "test", prompt=Visitor(world))
    assert (manager.load_tokens("alice@example.com") is not None) is is_stored
    warned = any("vouches for no e-mail address" in r.getMessage() for r in told.records)
    assert warned is is_stored  # none of these is a verified address


@pytest.mark.parametrize("name", ["bob", "bob@home", "work:bob@example.com", "@example.com"])
def test_a_name_that_is_not_an_address_is_not_compared(world: World, name: str) -> None:
    assert world.manager().login(name, "test", prompt=Visitor(world))


def test_an_address_is_requested_from_an_issuer_if_it_is_compared(world: World) -> None:
    ours = world.server.provider(sign_in_scope=None, scope=None)
    manager = world.manager(providers={"test": ours})
    for name, scope in {"alice": "openid", "alice@example.com": "openid email"}.items():
        visitor = Visitor(world)
        manager.login(name, "test", prompt=visitor)
        assert query_of(visitor.prompts[0].url)["scope"] == scope


@pytest.mark.parametrize("how", ["left out", "null"])
def test_a_sign_in_without_an_id_token_keeps_whose_the_account_is(world: World, how: str) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    provider = world.server.provider(sign_in_scope=None, issuer=None, scope="mail")
    if how == "null":
        world.server.script(Transform(lambda answer: {**answer, "id_token": None}))
    tokens = world.manager(providers={"test": provider}).login("alice", prompt=Visitor(world))
    assert tokens.get("id_token") is None
    error = refused(world, Visitor(world, "bob"))
    assert isinstance(error, WrongAccountError)
    assert "belongs to alice@example.com" in str(error)


@pytest.mark.parametrize("value", [None, "", "x", "e30.e30.x"])
def test_a_refresh_keeps_whose_the_account_is(world: World, value: object) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    world.server.script(Transform(lambda answer: {**answer, "id_token": value}))
    world.manager().refresh_token("alice")
    assert isinstance(refused(world, Visitor(world, "bob")), WrongAccountError)


def test_an_unknown_user_does_not_replace_a_known_one(world: World) -> None:
    manager = world.manager()
    before = manager.login("alice", "test", prompt=Visitor(world))
    nameless = Transform(lambda answer: {k: v for k, v in answer.items() if k != "id_token"})
    world.server.script(nameless)
    error = refused(world, Visitor(world, "bob"))
    assert type(error) is SignInError
    assert "no id_token" in str(error)
    assert manager.load_tokens("alice") == before
    world.server.script(nameless)
    assert manager.login("alice", prompt=Visitor(world), force=True) != before


def test_a_user_that_cannot_be_checked_is_logged(world: World) -> None:
    world.sign_in("alice")  # without an id_token
    with Told() as told:
        world.manager().login("alice", prompt=Visitor(world, "bob"))
    assert any("cannot check" in record.getMessage() for record in told.records)
    provider = world.server.provider(sign_in_scope=None, issuer=None, scope="mail")
    manager = world.manager(providers={"test": provider})
    visitor = Visitor(world)
    with Told() as told:
        assert "id_token" not in manager.login("alice", prompt=visitor)
    assert any("cannot check" in record.getMessage() for record in told.records)
    assert "nonce" not in query_of(visitor.prompts[0].url)


@pytest.mark.parametrize(
    ("claims", "which"),
    [
        ({"iss": "https://other.example"}, "'iss'"),
        ({"iss": None}, "'iss'"),
        ({"aud": "another-client"}, "'aud'"),
        ({"aud": ["tokenstore", "another-client"]}, "'azp'"),
        ({"azp": "another-client"}, "'azp'"),
        ({"exp": 1_800_000_000 - 600}, "'exp'|expired"),
        ({"exp": None}, "'exp'"),
        ({"exp": "soon"}, "'exp'|malformed"),
        ({"iat": 1_800_000_000 + 600}, "'iat'|malformed"),
        ({"nonce": "another"}, "'nonce'"),
        ({"nonce": None}, "'nonce'"),
        ({"sub": None}, "'sub'"),
        ({"at_hash": "another"}, "'at_hash'"),
    ],
    ids=str,
)
def test_an_id_token_that_is_not_for_this_sign_in_is_refused(
    world: World, claims: dict[str, object], which: str
) -> None:
    world.server.script(with_claims(**claims))
    error = refused(world, Visitor(world))
    assert "id_token" in str(error)
    assert re.search(which, str(error)) or "malformed" in str(error)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "e30.e30", "e30.W10.x", 7, "é.è.x", "...."])
def test_a_malformed_id_token_is_refused(world: World, token: object) -> None:
    world.server.script(Transform(lambda answer: answer | {"id_token": token}))
    assert "id_token" in str(refused(world, Visitor(world)))


def test_an_issuer_may_leave_out_its_scheme(world: World) -> None:
    """Google's documentation says that iss may be accounts.google.com."""
    provider = world.server.provider(issuer="https://accounts.example")
    manager = world.manager(providers={"test": provider})

    def change(params: dict[str, str]) -> None:
        params["iss"] = "https://accounts.example"

    for said in ("https://accounts.example", "accounts.example"):
        world.server.script(with_claims(iss=said))
        manager.login("alice", "test", prompt=Tampering(world, change))


# -- what the browser brings back -----------------------------------------------------------------


def test_a_wrong_state_is_refused_and_the_right_one_still_accepted(world: World) -> None:
    begun = begin(world.manager())
    location, params = callback(world.server, begun.prompt.url)
    for wrong in ("another", "", "é"):
        page = load(location, params={**params, "state": wrong})
        assert page.status == 400
        assert "Not this sign-in" in page.text
    assert load(location, params={k: v for k, v in params.items() if k != "state"}).status == 400
    twice = load(f"{location}?state={params['state']}&code=a&code={params['code']}")
    assert (twice.status, world.posts) == (400, 0)

    assert load(location, params=params).status == 200
    assert begun.call.result()["scope"] == "openid"


def test_other_requests_are_not_taken_for_the_redirect(world: World) -> None:
    begun = begin(world.manager())
    location, params = callback(world.server, begun.prompt.url)
    home = location.removesuffix("/callback/test")
    others = ("", "favicon.ico", "callback", "callback/test/", "Callback/test", "callback%2Ftest")
    for path in others:
        assert load(f"{home}/{path}", params=params).status == 404
    assert requests.post(location, params, timeout=SOON).status_code == 501
    assert world.posts == 0
    assert load(location, params=params).status == 200
    assert begun.call.result()


def test_only_the_first_redirect_is_accepted(world: World) -> None:
    hold = world.hold()
    begun = begin(world.manager())
    location, params = callback(world.server, begun.prompt.url)
    first = Call(load, location, params=params)
    assert hold.arrived.wait(SOON)
    second = load(location, params=params)
    assert second.status == 409
    assert "Already complete" in second.text
    hold.release.set()
    assert first.result().status == 200
    assert begun.call.result()
    assert world.posts == 1


@pytest.mark.parametrize("iss", ["https://other.example", ""])
def test_a_response_of_another_issuer_is_refused(world: World, iss: str) -> None:
    visitor = Tampering(world, lambda params: params.update(iss=iss))
    assert "'iss'" in str(refused(world, visitor))
    assert visitor.page.status == 400
    assert world.posts == 0


def test_an_error_of_another_issuer_is_not_believed(world: World) -> None:
    """RFC 9207 section 2.4: an error response has ``iss``, too."""

    def change(params: dict[str, str]) -> None:
        del params["code"]
        params |= {"iss": "https://other.example", "error": "access_denied"}

    error = refused(world, Tampering(world, change))
    assert "another provider" in str(error)
    assert error.error is None


def test_a_response_without_an_issuer_is_refused_if_the_server_always_sends_it(
    world: World,
) -> None:
    visitor = Tampering(world, lambda params: params.pop("iss"))
    assert "RFC 9207" in str(refused(world, visitor))
    assert world.posts == 0


def test_a_server_may_send_no_issuer(tmp_path: Path) -> None:
    with World(tmp_path, iss_parameter=False) as world:
        assert world.manager().login("alice", "test", prompt=Visitor(world))


def test_a_refusal_says_so_in_the_browser_and_in_the_error(world: World) -> None:
    visitor = Visitor(world, allow=False)
    error = refused(world, visitor)
    assert error.error == "access_denied"
    page = visitor.page
    assert "Sign-in refused" in page.text
    assert world.posts == 0


def test_an_error_description_is_shown_and_not_executed(world: World) -> None:
    def change(params: dict[str, str]) -> None:
        del params["code"]
        params["error"] = "server_error"
        params["error_description"] = "<script>alert(1)</script>\n\x1b[31m" + "x" * 5000

    visitor = Tampering(world, change)
    error = refused(world, visitor)
    assert "server_error: <script>" in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 500
    page = visitor.page
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text


def test_a_response_without_a_code_is_refused(world: World) -> None:
    assert "has no code" in str(refused(world, Tampering(world, lambda p: p.pop("code"))))


def test_a_code_that_was_used_before_is_refused(world: World) -> None:
    provider = world.server.provider()

    def steal(params: dict[str, str]) -> None:
        form = {"grant_type": "authorization_code", "code": params["code"]}
        form |= {"client_id": str(provider.client_id), "client_secret": str(provider.client_secret)}
        assert requests.post(world.server.token_endpoint, form, timeout=SOON).status_code == 400

    error = refused(world, Tampering(world, steal))
    assert error.error == "invalid_grant"
    assert "used before" in str(error)


def test_a_code_for_another_challenge_is_refused(world: World) -> None:
    class Attacker(Visitor):
        def __call__(self, prompt: Prompt) -> None:
            challenge = query_of(prompt.url)["code_challenge"]
            self._pages.put(self._server.visit(prompt.url.replace(challenge, "A" * 43)))

    error = refused(world, Attacker(world))
    assert error.error == "invalid_grant"
    assert "code_verifier" in str(error)


# -- what goes wrong at the token endpoint ---------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Answer(503), TransientRefreshError),
        (Drop(spent=True), TransientRefreshError),
        (Truncate(), TransientRefreshError),
        (Answer(200, "<html>"), TransientRefreshError),
        (denied("invalid_client", 401), ClientRejectedError),
        (Answer.redirect("http://elsewhere.example/token"), ClientRejectedError),
        (denied("invalid_grant"), SignInError),
    ],
    ids=repr,
)
def test_a_failed_token_request_stores_nothing_and_is_shown_in_the_browser(
    world: World, step: Any, expected: type[Exception]
) -> None:
    world.server.script(step)
    visitor = Visitor(world)
    with pytest.raises(expected) as caught:
        world.manager().login("alice", "test", prompt=visitor)
    assert type(caught.value) is expected
    assert world.manager().load_tokens("alice") is None
    assert world.posts == 1
    page = visitor.page
    assert "Not signed in" in page.text


def test_tokens_that_cannot_be_stored_are_in_the_error(world: World) -> None:
    world.sign_in("alice", sub="alice")
    before = world.row()
    world.refuse("UPDATE ON accounts")
    visitor = Visitor(world)
    with pytest.raises(TokenPersistError) as caught:
        world.manager().login("alice", prompt=visitor)
    assert caught.value.tokens
    assert world.server.is_live(caught.value.tokens["access_token"])
    page = visitor.page
    assert "Signed in, but not stored" in page.text
    assert caught.value.tokens["access_token"] not in page.text + str(caught.value)
    assert world.row() == before


def test_an_unreadable_store_is_an_error_before_the_user_is_prompted(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.path.write_bytes(b"not a database" * 100)
        with pytest.raises(StorageError):
            world.manager().login("alice", "test", prompt=nobody)


# -- no response ----------------------------------------------------------------------------------


def test_a_timeout_ends_the_sign_in(world: World) -> None:
    error = refused(world, lambda _: None, timeout=0.01)
    assert "no sign-in within" in str(error)


def test_a_redirect_after_the_timeout_is_not_accepted(world: World) -> None:
    begun = begin(world.manager(), timeout=0.01)
    assert isinstance(begun.call.error(), SignInError)
    with pytest.raises(requests.ConnectionError):
        load(str(begun.prompt.redirect_uri))


def test_an_error_of_the_prompt_ends_the_sign_in(world: World) -> None:
    def prompt(_: Prompt) -> None:
        raise LookupError("no browser")

    with pytest.raises(LookupError, match="no browser"):
        world.manager().login("alice", "test", prompt=prompt)


# -- ports and URLs -------------------------------------------------------------------------------


def test_a_port_in_use_is_an_error(world: World) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(world, nobody, port=port)
    assert f"port {port}" in str(error)
    assert "choose another" in str(error)


@pytest.mark.parametrize("how", ["argument", "redirect_uri"])
def test_a_port_can_be_chosen(world: World, how: str) -> None:
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changes = (
        {"redirect_uri": f"http://127.0.0.1:{port}/callback/test"} if how != "argument" else {}
    )
    manager = world.manager(providers={"test": world.server.provider(**changes)})
    visitor = Visitor(world)
    options = {"port": port} if how == "argument" else {}
    for _ in range(2):  # the second time too, with old connections about
        manager.login("alice", "test", prompt=visitor, **options)
    assert visitor.prompts[0].redirect_uri == f"http://127.0.0.1:{port}/callback/test"


@pytest.mark.parametrize(
    "uri", ["http://localhost", "http://localhost/", "http://127.0.0.1/a/b", "http://[::1]/x"]
)
def test_the_browser_returns_to_the_registered_redirect_uri(world: World, uri: str) -> None:
    world.server.register("desktop", redirect_uris=[uri])
    provider = world.server.provider(
        client_id="desktop", client_secret=None, token_endpoint_auth_method=None, redirect_uri=uri
    )
    assert world.manager(providers={"test": provider}).login("a", "test", prompt=Visitor(world))


def test_each_provider_has_a_callback_path_of_its_own(world: World) -> None:
    """RFC 8252 section 8.10."""
    names = ("one", "the other/one")
    manager = world.manager(providers={name: world.server.provider(name) for name in names})
    visitor = Visitor(world)
    for name in names:
        assert manager.login(name, name, prompt=visitor)
    paths = [urlsplit(str(prompt.redirect_uri)).path for prompt in visitor.prompts]
    assert paths == ["/callback/one", "/callback/the%20other%2Fone"]


def test_nobody_else_can_listen_on_an_address_of_localhost(world: World) -> None:
    """RFC 8252 section 8.3: browsers try ::1 first."""
    world.server.register("desktop", redirect_uris=["http://localhost"])
    provider = world.server.provider(
        client_id="desktop",
        client_secret=None,
        token_endpoint_auth_method=None,
        redirect_uri="http://localhost",
    )
    begun = begin(world.manager(providers={"test": provider}))
    location, params = callback(world.server, begun.prompt.url)
    port = urlsplit(location).port or 0
    for address, family in {"127.0.0.1": AF_INET, "::1": AF_INET6}.items():
        with pytest.raises(OSError, match="in use"), create_server((address, port), family=family):
            raise AssertionError
    assert load(f"http://127.0.0.1:{port}/x").status == 404
    assert load(f"http://[::1]:{port}/", params=params).status == 200
    assert begun.call.result()


def test_a_port_in_use_on_one_address_of_localhost_is_an_error(world: World) -> None:
    provider = world.server.provider(redirect_uri="http://localhost")
    with create_server(("::1", 0), family=AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SignInError, match=f"port {port}"):
            world.manager(providers={"test": provider}).login(
                "alice", "test", prompt=nobody, port=port
            )
    with create_server(("127.0.0.1", port)):
        pass  # it was given back


@pytest.mark.parametrize("fault", [errno.EADDRINUSE, errno.EADDRNOTAVAIL], ids=errno.errorcode.get)
def test_a_free_port_of_localhost_is_found(monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    """Also where another program has the port on ::1, or the machine has no ::1."""
    bind = TCPServer.server_bind
    failed: list[TCPServer] = []

    def fail_once(server: TCPServer) -> None:
        if server.address_family == AF_INET6 and not failed:
            failed.append(server)
            raise OSError(fault, "injected")
        bind(server)

    monkeypatch.setattr(TCPServer, "server_bind", fail_once)
    with RedirectServer("http://localhost", 0, "state") as server:
        port = urlsplit(server.redirect_uri).port
        assert load(f"http://127.0.0.1:{port}/?state=other").status == 400
        if fault == errno.EADDRINUSE:
            assert load(f"http://[::1]:{port}/?state=other").status == 400
    assert failed


@pytest.mark.parametrize(
    "uri",
    [
        "https://127.0.0.1/callback",
        "http://app.example/callback",
        "http://0.0.0.0/callback",
        "http://127.0.0.1/callback?x=1",
        "http://127.0.0.1/callback#x",
        "http://user@127.0.0.1/callback",
        "http://127.0.0.1:99999/callback",
        "myapp://callback",
        "",
    ],
)
def test_a_redirect_uri_must_be_on_loopback(world: World, uri: str) -> None:
    manager = world.manager(providers={"test": world.server.provider(redirect_uri=uri)})
    with pytest.raises(ProviderConfigurationError, match="redirect_uri"):
        manager.login("alice", "test", prompt=nobody)


# -- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"authorization_endpoint": "http://login.example/"}, "not https"),
        ({"authorization_endpoint": "https://user@login.example/"}, "user name"),
        ({"authorization_endpoint": None, "issuer": None}, "no authorization_endpoint"),
        ({"token_endpoint": "http://login.example/"}, "not https"),
        ({"client_id": ""}, "no client_id"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_misconfigured_provider_is_an_error_before_anything_is_sent(
    world: World, changes: dict[str, Any], problem: str
) -> None:
    manager = world.manager(providers={"test": world.server.provider(**changes)})
    with pytest.raises(ProviderConfigurationError, match=problem):
        manager.login("alice", "test", prompt=nobody)


def test_the_first_sign_in_requires_a_provider(world: World) -> None:
    with pytest.raises(ProviderConfigurationError, match="bound to no provider"):
        world.manager().login("alice", prompt=nobody)
    with pytest.raises(ProviderConfigurationError, match="unknown provider"):
        world.manager().login("alice", "tset", prompt=nobody)


def test_another_provider_requires_force(world: World) -> None:
    both = {"test": world.server.provider(), "other": world.server.provider("other")}
    manager = world.manager(providers=both)
    manager.login("alice", "test", prompt=Visitor(world))
    with pytest.raises(ProviderConfigurationError, match="bound to provider 'test'"):
        manager.login("alice", "other", prompt=nobody)
    manager.login("alice", "other", force=True, prompt=Visitor(world))
    assert world.row()["provider"] == "other"


def test_without_the_extra_the_error_names_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "authlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tokenstore\[login\]'"):
        world.manager().login("alice", "test", prompt=nobody)


@pytest.mark.parametrize(
    ("scope", "remedy"),
    [("openid", "request the scope offline_access"), ("offline_access", "allow offline access")],
)
def test_the_remedy_for_a_missing_refresh_token_fits(world: World, scope: str, remedy: str) -> None:
    world.server.script(Transform(lambda answer: {**answer, "refresh_token": None}))
    provider = world.server.provider(sign_in_scope=scope)
    with Told() as told:
        world.manager(providers={"test": provider}).login("alice", "test", prompt=Visitor(world))
    assert any(remedy in record.getMessage() for record in told.records)


# -- secrets --------------------------------------------------------------------------------------


def test_no_secret_of_a_sign_in_is_logged_or_shown(world: World) -> None:
    seen: list[str] = []
    with Told("") as told:
        for step in (None, denied("invalid_grant"), Answer(503)):
            if step is not None:
                world.server.script(step)
            visitor = Visitor(world)
            try:
                tokens = world.manager().login("alice", "test", prompt=visitor)
            except (SignInError, TransientRefreshError) as error:
                seen += [str(error), repr(error), repr(vars(error))]
            page = visitor.page
            seen += [page.text, repr(visitor.prompts)]
            asked = query_of(visitor.prompts[0].url)
            secrets = [asked["state"], asked["nonce"]]
    secrets += [tokens["access_token"], tokens["refresh_token"], tokens["id_token"]]
    for request in world.server.requests:
        secrets += [request.params["code"], request.params["code_verifier"]]
    seen += [
        record.getMessage() for record in told.records if record.name != "urllib3.connectionpool"
    ]
    text = "\n".join(seen)
    assert len(text) > 1000
    assert [secret for secret in secrets if secret in text] == []


def test_a_provider_that_echoes_the_code_is_not_quoted(world: World) -> None:
    class Echo(Visitor):
        def __call__(self, prompt: Prompt) -> None:
            location, params = callback(self._server, prompt.url)
            said = {"error": "invalid_grant", "error_description": f"no {params['code']}"}
            self._server.script(Answer(400, said))
            self.code = params["code"]
            self._pages.put(load(location, params=params))

    echo = Echo(world)
    error = refused(world, echo)
    page = echo.page
    assert "[redacted]" in str(error)
    assert echo.code not in str(error) + page.text + repr(vars(error))


def test_a_refresh_renews_the_scope_that_was_granted_to_a_sign_in(world: World) -> None:
    provider = world.server.provider(scope="mail")
    manager = world.manager(providers={"test": provider})
    world.server.script(Transform(lambda body: {**body, "scope": None}))
    stored = manager.login("alice", "test", scope="calendar", prompt=Visitor(world))
    assert "calendar" in stored["scope"].split()
    manager.refresh_token("alice")
    assert "scope" not in world.server.requests[-1].params

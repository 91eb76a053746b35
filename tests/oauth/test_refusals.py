"""What real providers say when a refresh fails, in their own words, and what that means."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tokenstore import (
    ClientRejectedError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.oauth.refusals import Refusal
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from tests.helpers.refreshes import World
    from tokenstore.oauth.refusals import Meaning


class Said(NamedTuple):
    """A provider's words, and what they mean."""

    status: int
    body: Any
    means: Meaning | None


def oauth(error: str, description: str) -> dict[str, str]:
    return {"error": error, "error_description": description}


# P1: a dead refresh token, in whatever words.
DEAD = {
    "Atlassian": Said(403, oauth("unauthorized_client", "refresh_token is invalid"), None),
    "Auth0": Said(403, oauth("invalid_grant", "Unknown or invalid refresh token."), None),
    "Bitbucket": Said(400, oauth("invalid_request", "Invalid refresh_token"), None),
    "Box": Said(400, oauth("invalid_grant", "Refresh token has expired"), None),
    "Cognito": Said(
        400,
        {"__type": "NotAuthorizedException", "message": "Refresh Token has been revoked"},
        None,
    ),
    "Dropbox": Said(400, oauth("invalid_grant", "refresh token is malformed"), None),
    "eBay": Said(
        400,
        oauth(
            "invalid_grant",
            "the provided authorization refresh token is invalid or was issued to another client",
        ),
        None,
    ),
    "Fitbit": Said(
        400,
        {
            "errors": [{"errorType": "invalid_grant", "message": "Refresh token invalid: 1a2b"}],
            "success": False,
        },
        None,
    ),
    "GitHub": Said(
        200, oauth("bad_refresh_token", "The refresh token passed is incorrect or expired."), None
    ),
    "Google": Said(400, oauth("invalid_grant", "Token has been expired or revoked."), None),
    "HubSpot": Said(
        400,
        {
            "status": "BAD_REFRESH_TOKEN",
            "message": "missing or invalid refresh token",
            "correlationId": "4d7a",
        },
        None,
    ),
    "LinkedIn": Said(
        400,
        oauth(
            "invalid_request",
            "The provided authorization grant or refresh token is invalid, expired or revoked",
        ),
        None,
    ),
    "Microsoft, inactive": Said(
        400,
        oauth(
            "invalid_grant",
            "AADSTS700082: The refresh token has expired due to inactivity. The token was issued "
            "on 2026-01-01T00:00:00Z and was inactive for 90.00:00:00.",
        ),
        None,
    ),
    "Microsoft, consent": Said(
        400,
        oauth(
            "interaction_required",
            "AADSTS50076: Due to a configuration change made by your administrator you must use "
            "multi-factor authentication to access '00000003'.",
        ),
        None,
    ),
    "Monzo": Said(
        401,
        {
            "code": "unauthorized.bad_refresh_token.evicted",
            "message": "Refresh token has been evicted",
        },
        None,
    ),
    "PayPal": Said(400, oauth("invalid_refresh_token", "No consent were granted"), None),
    "QuickBooks": Said(400, oauth("invalid_grant", "Incorrect or invalid refresh token"), None),
    "Salesforce": Said(400, oauth("invalid_grant", "expired access/refresh token"), None),
    "Slack": Said(200, {"ok": False, "error": "invalid_refresh_token"}, None),
    "Spotify": Said(400, oauth("invalid_grant", "Refresh token revoked"), None),
    "Strava": Said(
        400,
        {
            "message": "Bad Request",
            "errors": [{"resource": "RefreshToken", "field": "refresh_token", "code": "invalid"}],
        },
        None,
    ),
    "Tesla": Said(401, oauth("login_required", "The refresh_token is invalid."), None),
    "TikTok": Said(400, oauth("invalid_grant", "Refresh token is invalid or expired."), None),
    "Twitch": Said(
        400, {"error": "Bad Request", "status": 400, "message": "Invalid refresh token"}, None
    ),
    "Withings": Said(
        200,
        {"status": 503, "body": {}, "error": "Invalid Params: invalid refresh_token"},
        None,
    ),
    "Zoho": Said(200, {"error": "invalid_code"}, None),
    "Zoom": Said(400, {"reason": "Invalid Token!", "error": "invalid_grant"}, None),
    "in camel case": Said(400, {"errorCode": "RefreshTokenExpired"}, None),
    "nested": Said(
        401, {"error": {"code": 401, "message": "The refresh token was already used"}}, None
    ),
    "another's description": Said(
        400, {"error": "invalid_grant", "error_description": None, "trace": "x"}, None
    ),
}

# Nothing is wrong for good. P2: another request with the token is at work.
LATER = {
    "Salesforce, busy": Said(
        400, oauth("invalid_grant", "token request is already being processed"), None
    ),
    "Zoho, too often": Said(
        400,
        {
            "error_description": "You have made too many requests continuously. Please try again "
            "after some time.",
            "error": "Access Denied",
            "status": "failure",
        },
        None,
    ),
    "Slack, too often": Said(429, {"ok": False, "error": "ratelimited"}, None),
    "Auth0, too often": Said(429, oauth("access_denied", "Too many logins"), None),
    "Microsoft, down": Said(
        400, oauth("temporarily_unavailable", "AADSTS90033: A transient error has occurred."), None
    ),
    "Google, down": Said(500, oauth("internal_failure", "Backend Error"), None),
    "in progress": Said(409, {"message": "A refresh of this token is in progress"}, None),
}

# A person has to correct the client.
CLIENT = {
    "Google, unknown": Said(401, oauth("invalid_client", "The OAuth client was not found."), None),
    "Google, deleted": Said(401, oauth("deleted_client", "The OAuth client was deleted."), None),
    "Microsoft, secret": Said(
        401,
        oauth("invalid_client", "AADSTS7000222: The provided client secret keys are expired."),
        None,
    ),
    "Microsoft, application": Said(
        400,
        oauth("unauthorized_client", "AADSTS700016: Application with identifier 'x' was not found"),
        None,
    ),
    "Microsoft, malformed": Said(
        400,
        oauth("invalid_request", "AADSTS9002313: Invalid request. Request is malformed."),
        None,
    ),
    "GitHub": Said(
        200,
        oauth("incorrect_client_credentials", "The client_id and/or client_secret are incorrect."),
        None,
    ),
    "Slack": Said(200, {"ok": False, "error": "invalid_client_id"}, None),
    "Zoho": Said(200, {"error": "invalid_client"}, None),
    "Strava": Said(
        401,
        {
            "message": "Authorization Error",
            "errors": [{"resource": "Application", "field": "client_id", "code": "invalid"}],
        },
        None,
    ),
    "the grant type": Said(400, oauth("unsupported_grant_type", "invalid grant type"), None),
    "the token endpoint": Said(400, oauth("invalid_request", "invalid token type"), None),
}

# P3: nobody can tell.
UNKNOWN = {
    "a bot wall": Said(403, None, None),
    "a path": Said(404, {"message": "Not Found"}, None),
    "Reddit": Said(400, {"message": "Bad Request", "error": 400}, None),
    "an access token": Said(
        200, {"ok": True, "message": "Welcome, your token is on its way"}, None
    ),
}


def expected(means: str, cases: dict[str, Said]) -> list[Any]:
    return [
        pytest.param(said._replace(means=means), id=f"{means}: {name}")  # type: ignore[arg-type]
        for name, said in cases.items()
    ]


@pytest.mark.parametrize(
    "said",
    [
        *expected("reauthorization", DEAD),
        *expected("transient", LATER),
        *expected("client", CLIENT),
    ],
)
def test_a_providers_own_words_are_understood(said: Said) -> None:
    """P1, P2: by words, wherever they stand, and not by the status."""
    assert Refusal(said.status, said.body).meaning(()) == said.means


@pytest.mark.parametrize("said", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_nobody_understands_means_nothing(said: Said) -> None:
    """P3: neither a verdict on the token nor one on the client."""
    assert Refusal(said.status, said.body).meaning(()) is None


# -- in a refresh ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Strava", "HubSpot", "Zoho", "Bitbucket"])
def test_a_dead_token_is_sent_once_and_that_is_remembered(world: World, name: str) -> None:
    """P1: one request, one call of the hook, and `sign_in` afterwards."""
    world.sign_in()
    status, body, _ = DEAD[name]
    world.server.script(*[Answer(status, body)] * 3)
    told: list[str] = []
    for _ in range(3):
        manager = world.manager(on_reauthorization_required=lambda name, _: told.append(name))
        with pytest.raises(ReauthorizationRequired):
            manager.ensure_valid_token("alice")
    assert world.posts == 1
    assert told == ["alice"]
    assert [account.state for account in manager.accounts()] == ["sign_in"]


def test_a_busy_provider_is_asked_again(world: World) -> None:
    """P2: `invalid_grant` for a token that another program is exchanging is no verdict."""
    world.sign_in()
    world.server.script(Answer(*LATER["Salesforce, busy"][:2]))
    manager = world.manager()
    with pytest.raises(TransientRefreshError):
        manager.refresh_token("alice")
    assert manager.get_valid_token("alice") is not None


def test_a_bot_wall_is_asked_again_after_a_wait(world: World) -> None:
    """P3: not at every use, and not at every run of a job."""
    world.sign_in()
    wall = Answer(403, "<html>Are you a robot?</html>", content_type="text/html")
    world.server.script(*[wall] * 2)
    for _ in range(3):
        with pytest.raises(TransientRefreshError) as caught:
            world.manager().ensure_valid_token("alice")
        assert caught.value.retry_after == 60
    assert world.posts == 1
    world.clock.now += 60
    with pytest.raises(TransientRefreshError):
        world.manager().ensure_valid_token("alice")
    assert world.posts == 2
    world.clock.now += 119
    assert world.manager().get_valid_token("alice") is None
    assert world.posts == 2
    world.clock.now += 1
    assert world.manager().get_valid_token("alice") is not None


def test_a_correction_of_the_client_is_tried_at_once(world: World) -> None:
    """P1: what was wrong with other settings is not held against these."""
    world.sign_in()
    world.server.script(Answer(*CLIENT["Google, unknown"][:2]))
    with pytest.raises(ClientRejectedError):
        world.manager().ensure_valid_token("alice")
    with pytest.raises(ClientRejectedError):
        world.manager().ensure_valid_token("alice")
    assert world.posts == 1
    [account] = world.manager().accounts()
    assert account.state == "misconfigured"
    corrected = world.server.provider(extra_params={"audience": "api"})
    assert world.manager(providers={"test": corrected}).get_valid_token("alice") is not None


WORDS = {
    "message": ({"message": "the refresh is not due yet"}, "the refresh is not due yet"),
    "status": ({"status": "NOT_TODAY", "message": "closed"}, "NOT_TODAY: closed"),
    "errors[]": ({"errors": [{"code": "E17", "message": "no such realm"}]}, "E17; no such realm"),
    "errors[] of strings": ({"errors": ["E17"]}, "E17"),
    "detail": ({"title": "Forbidden", "detail": "by policy 7"}, "Forbidden; by policy 7"),
    "nested": ({"error": {"code": "E17", "message": "no such realm"}}, "E17: no such realm"),
}


@pytest.mark.parametrize(("body", "shown"), WORDS.values(), ids=WORDS.keys())
def test_a_providers_own_words_are_shown(world: World, body: Any, shown: str) -> None:
    """P8: wherever they stand."""
    world.sign_in()
    world.server.script(Answer(403, body))
    with pytest.raises(TokenRefreshError, match=re.escape(shown)):
        world.manager().refresh_token("alice")
    [account] = world.manager().accounts()
    assert shown in str(account.last_error)


@pytest.mark.parametrize("where", ["message", "status", "errors", "detail"])
def test_a_providers_own_words_are_shown_redacted(world: World, where: str) -> None:
    """P8: a run of twelve characters of what was sent is one too many."""
    refresh_token = str(world.sign_in()["refresh_token"])
    said = f"no {refresh_token[3:25]} here"
    world.server.script(Answer(403, {where: [{"message": said}] if where == "errors" else said}))
    with pytest.raises(TokenRefreshError) as caught:
        world.manager().refresh_token("alice")
    [account] = world.manager().accounts()
    for shown in (str(caught.value), repr(caught.value), str(account.last_error)):
        assert refresh_token[3:15] not in shown
    assert "[redacted]" in str(caught.value)


# -- by a provider's own rules --------------------------------------------------------------------

RULES: dict[str, tuple[dict[str, Any], Said]] = {
    "by error": (
        {"error": "invalid_grant", "means": "transient"},
        Said(400, oauth("invalid_grant", "x"), "transient"),
    ),
    "by an error elsewhere": (
        {"error": "E17", "means": "reauthorization"},
        Said(400, {"errors": [{"code": "E17"}]}, "reauthorization"),
    ),
    "by status": ({"status": 418, "means": "client"}, Said(418, None, "client")),
    "by words, in any case": (
        {"contains": "Gone Fishing", "means": "transient"},
        Said(400, oauth("invalid_client", "we are GONE FISHING today"), "transient"),
    ),
    "by all of them": (
        {"status": 400, "error": "E1", "contains": "x", "means": "reauthorization"},
        Said(400, {"code": "E1", "message": "x"}, "reauthorization"),
    ),
    "another status": (
        {"status": 401, "error": "invalid_grant", "means": "transient"},
        Said(400, oauth("invalid_grant", "x"), "reauthorization"),
    ),
    "another error": (
        {"error": "invalid_request", "means": "transient"},
        Said(400, oauth("invalid_grant", "x"), "reauthorization"),
    ),
    "other words": (
        {"status": 400, "contains": "y", "means": "transient"},
        Said(400, oauth("invalid_grant", "x"), "reauthorization"),
    ),
    "of a 5xx": ({"status": 500, "means": "reauthorization"}, Said(500, None, "reauthorization")),
}


@pytest.mark.parametrize(("rule", "said"), RULES.values(), ids=RULES.keys())
def test_a_rule_of_the_provider_decides_before_the_general_ones(
    rule: dict[str, Any], said: Said
) -> None:
    """P1: what no general rule can know is a setting."""
    assert Refusal(said.status, said.body).meaning([rule]) == said.means


def test_the_first_rule_that_matches_decides() -> None:
    rules: list[dict[str, Any]] = [
        {"error": "E1", "means": "client"},
        {"status": 400, "means": "transient"},
        {"status": 400, "error": "E2", "means": "reauthorization"},
    ]
    meanings = [Refusal(400, {"error": error}).meaning(rules) for error in ("E1", "E2")]
    assert meanings == ["client", "transient"]


@pytest.mark.parametrize(
    ("means", "raised", "state"),
    [
        ("reauthorization", ReauthorizationRequired, "sign_in"),
        ("transient", TransientRefreshError, "due"),
        ("client", ClientRejectedError, "misconfigured"),
    ],
)
def test_a_rule_is_in_force_in_a_refresh(
    world: World, means: str, raised: type[TokenRefreshError], state: str
) -> None:
    world.sign_in()
    world.server.script(Answer(422, {"error": "E17"}))
    provider = world.server.provider(failures=[{"error": "E17", "means": means}])
    manager = world.manager(providers={"test": provider})
    with pytest.raises(raised) as caught:
        manager.refresh_token("alice")
    assert type(caught.value) is raised
    assert [account.state for account in manager.accounts()] == [state]


# -- an answer of another shape -------------------------------------------------------------------

NEW = {"access_token": "new", "refresh_token": "newer", "expires_in": 1000}
SHAPES: dict[str, tuple[Any, str | None]] = {
    "data": ({"data": NEW}, None),
    "body, with a status (Withings)": ({"status": 0, "body": {**NEW, "userid": "7"}}, None),
    "authed_user (Slack)": ({"ok": True, "app_id": "A", "authed_user": NEW}, None),
    "a list of one": ([NEW], None),
    "camel case": ({"accessToken": "new", "refreshToken": "newer", "expiresIn": 1000}, None),
    "two levels down, named": ({"result": {"tokens": NEW}}, "result.tokens"),
    "beside another, named": (
        {"bot": {"access_token": "b", "refresh_token": "b"}, "user": NEW},
        "user",
    ),
    "white space around it": ({**NEW, "access_token": " new\n", "refresh_token": "newer\n"}, None),
}


@pytest.mark.parametrize(("body", "path"), SHAPES.values(), ids=SHAPES.keys())
def test_tokens_are_found_where_a_provider_puts_them(
    world: World, body: Any, path: str | None
) -> None:
    """P4: one level down by themselves, deeper where a setting says so."""
    world.sign_in()
    world.server.script(Answer(200, json.dumps(body)))
    provider = world.server.provider(response_path=path)
    tokens = world.manager(providers={"test": provider}).refresh_token("alice")
    assert tokens["access_token"] == "new"
    assert world.tokens() == ("new", "newer", world.clock.now + 1000)


def test_where_nothing_says_so_tokens_two_levels_down_are_not_taken(world: World) -> None:
    """P4: they may be of something else."""
    old = world.sign_in()
    world.server.script(Answer(200, {"result": {"tokens": NEW}}))
    with pytest.raises(TransientRefreshError) as caught:
        world.manager().refresh_token("alice")
    assert caught.value.maybe_spent
    assert world.tokens()[1] == old["refresh_token"]


# -- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "granted",
    [
        {"scope": "calendar mail"},
        {"scope": ["mail", "calendar"]},
        {"scope": None, "scopes": ["mail", "calendar"]},
        {"scope": None, "scopes": "mail calendar"},
        {"scope": "mail,calendar"},
    ],
    ids=["a string", "a list", "scopes", "scopes in a string", "commas"],
)
def test_a_refresh_does_not_narrow_what_was_granted(world: World, granted: dict[str, Any]) -> None:
    """P7: without a scope, everything that was granted is renewed."""
    world.sign_in(**granted)
    provider = world.server.provider(scope="mail")
    assert world.manager(providers={"test": provider}).get_valid_token("alice") is not None
    [request] = world.server.requests
    assert "scope" not in request.params

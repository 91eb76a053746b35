"""Where people come in: sign-in, consent, device codes. No sockets."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from tokenstore.testing import pages
from tokenstore.testing.codes import CodeRequest, is_registered
from tokenstore.testing.devices import Device
from tokenstore.testing.protocol import NO_STORE, RefusedError, decode_form
from tokenstore.testing.script import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.testing.codes import Codes
    from tokenstore.testing.devices import Devices
    from tokenstore.testing.protocol import Client, Received


@dataclass(frozen=True)
class _Ticket:
    """What a person has begun and not decided yet."""

    wanted: CodeRequest | Device
    subject: str | None = None


class FrontDoor:
    """The pages of an authorization server, and what follows from them.

    Args:
        issuer: What the browser is told about who sent it (RFC 9207), or None to leave it out.
        clients: The clients by their ids.
        users: Passwords by user names.
        codes: Where codes come from.
        devices: The devices that wait.
        default_scope: The scope of a request that names none.
    """

    def __init__(
        self,
        issuer: str | None,
        clients: Mapping[str, Client],
        users: Mapping[str, str],
        codes: Codes,
        devices: Devices,
        default_scope: str,
    ) -> None:
        self._issuer = issuer
        self._clients = clients
        self._users = users
        self._codes = codes
        self._devices = devices
        self._default_scope = default_scope
        self._tickets: dict[str, _Ticket] = {}

    def respond(self, received: Received, now: float) -> Answer | None:
        """Return the answer to a browser, None if the path is no page."""
        match received.method, received.path:
            case "GET", "/authorize":
                return self._authorize(received.query)
            case "GET", "/device":
                return pages.device(_single(received.query.encode()).get("user_code", ""))
            case "POST", "/device":
                return self._enter(dict(received.form or ()), now)
            case "POST", "/sign-in":
                return self._sign_in(dict(received.form or ()))
            case "POST", "/consent":
                return self._decide(dict(received.form or ()), now)
        return None

    def _authorize(self, query: str) -> Answer:
        """Begin a sign-in. Until the redirect URI is known to be right, nothing goes there."""
        try:
            params = _single(query.encode())
        except ValueError:
            return pages.complaint("the query is not form-encoded, or a parameter is repeated")
        client = self._clients.get(params.get("client_id", ""))
        if client is None:
            return pages.complaint("unknown client_id")
        redirect_uri = params.get("redirect_uri", "")
        if not is_registered(redirect_uri, client.redirect_uris):
            return pages.complaint("the redirect_uri is not registered")
        try:
            wanted = CodeRequest.of(params, self._default_scope)
        except RefusedError as refusal:
            return self._redirect(redirect_uri, params.get("state"), **refusal.told)
        return pages.sign_in(self._ticket(_Ticket(wanted)), wanted.login_hint)

    def _enter(self, form: dict[str, str], now: float) -> Answer:
        user_code = form.get("user_code", "")
        device = self._devices.find(user_code, now)
        if device is None:
            return pages.device(user_code, "This code is unknown, used or expired.")
        return pages.sign_in(self._ticket(_Ticket(device)))

    def _sign_in(self, form: dict[str, str]) -> Answer:
        ticket = self._tickets.pop(form.get("ticket", ""), None)
        username = form.get("username", "")
        if ticket is None:
            return pages.complaint("this page is out of date; begin again")
        if username not in self._users or self._users[username] != form.get("password"):
            return pages.sign_in(self._ticket(ticket), username, "Wrong user name or password.")
        wanted = ticket.wanted
        renewed = self._ticket(replace(ticket, subject=username))
        return pages.consent(renewed, username, wanted.client_id, wanted.scope)

    def _decide(self, form: dict[str, str], now: float) -> Answer:
        ticket = self._tickets.pop(form.get("ticket", ""), None)
        allowed = form.get("decision") == "allow"
        if ticket is None or ticket.subject is None:
            return pages.complaint("this page is out of date; begin again")
        wanted = ticket.wanted
        if isinstance(wanted, Device):
            if allowed:
                wanted.subject = ticket.subject
            else:
                wanted.refused = True
            return pages.page("Done", "<p>Go back to your device.</p>")
        if not allowed:
            told = {"error": "access_denied", "error_description": "the person said no"}
            return self._redirect(wanted.redirect_uri, wanted.state, **told)
        code = self._codes.issue(wanted, ticket.subject, now)
        return self._redirect(wanted.redirect_uri, wanted.state, code=code)

    def _ticket(self, ticket: _Ticket) -> str:
        number = secrets.token_urlsafe()
        self._tickets[number] = ticket
        return number

    def _redirect(self, uri: str, state: str | None, **params: str) -> Answer:
        told = params | {
            name: value
            for name, value in (("state", state), ("iss", self._issuer))
            if value is not None
        }
        location = f"{uri}{'&' if '?' in uri else '?'}{urlencode(told)}"
        return Answer(303, headers={"Location": location, **NO_STORE}, content_type=None)


def _single(query: bytes) -> dict[str, str]:
    """Return parameters of which none is repeated."""
    pairs = decode_form(query)
    if pairs is None or len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)

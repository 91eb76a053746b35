"""The pages of the authorization server: ``/authorize`` and ``/device``. No sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from tokenstore.testing import pages
from tokenstore.testing.codes import CodeRequest, is_registered
from tokenstore.testing.protocol import NO_STORE, OAuthError, decode_form
from tokenstore.testing.script import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.testing.codes import Codes
    from tokenstore.testing.devices import Devices
    from tokenstore.testing.protocol import Client, HTTPRequest

_INVALID = "The query is malformed, or the client_id or the redirect_uri is not registered."
_WRONG_PASSWORD = "Wrong user name or password."  # noqa: S105 - a message


class AuthorizationPages:
    """The pages on which users sign in and allow or refuse access.

    Each page is one form, which is sent to its own URL.

    Args:
        issuer: The ``iss`` parameter of redirects (RFC 9207), or None to omit it.
        clients: The clients by their ids.
        users: Passwords by user names.
        codes: Issues the authorization codes.
        devices: The device codes.
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

    def respond(self, request: HTTPRequest, now: float) -> Answer | None:
        """Return the response to a browser, or None if the path is not a page."""
        match request.path:
            case "/authorize":
                return self._authorize(request, now)
            case "/device":
                return self._device(request, now)
        return None

    def _authorize(self, request: HTTPRequest, now: float) -> Answer:
        """Handle an authorization request (RFC 6749 section 4.1.1).

        Redirects only to a redirect URI that is registered for the client.
        """
        params = _parse_query(request.query)
        client = self._clients.get(params.get("client_id", ""))
        redirect_uri, state = params.get("redirect_uri", ""), params.get("state")
        if client is None or not is_registered(redirect_uri, client.redirect_uris):
            return pages.message("Invalid request", _INVALID, 400)
        try:
            code_request = CodeRequest.from_params(params, self._default_scope)
        except OAuthError as error:
            return self._redirect(redirect_uri, state, **error.params)
        if request.method == "GET":
            return pages.sign_in(code_request.login_hint)
        form = dict(request.form or ())
        if not self._has_password(form):
            return pages.sign_in(form.get("username", ""), error=_WRONG_PASSWORD)
        if form.get("decision") != "allow":
            denied = {"error": "access_denied", "error_description": "the user refused access"}
            return self._redirect(redirect_uri, state, **denied)
        code = self._codes.issue(code_request, form["username"], now)
        return self._redirect(redirect_uri, state, code=code)

    def _device(self, request: HTTPRequest, now: float) -> Answer:
        """Handle the page where a user enters the code of a device (RFC 8628 section 3.3)."""
        form = _parse_query(request.query) | dict(request.form or ())
        user_code, username = form.get("user_code", ""), form.get("username", "")
        if request.method == "GET":
            return pages.sign_in(user_code=user_code)
        device = self._devices.find_pending(user_code, now)
        if device is None:
            error = "This code is unknown, used or expired."
            return pages.sign_in(username, user_code=user_code, error=error)
        if not self._has_password(form):
            return pages.sign_in(username, user_code=user_code, error=_WRONG_PASSWORD)
        if form.get("decision") == "allow":
            device.subject = username
        else:
            device.refused = True
        return pages.message("Done", "Return to your device.")

    def _has_password(self, form: Mapping[str, str]) -> bool:
        password = self._users.get(form.get("username", ""))
        return password is not None and password == form.get("password")

    def _redirect(self, uri: str, state: str | None, **params: str) -> Answer:
        optional = {"state": state, "iss": self._issuer}
        params |= {name: value for name, value in optional.items() if value is not None}
        location = f"{uri}{'&' if '?' in uri else '?'}{urlencode(params)}"
        return Answer(303, headers={"Location": location, **NO_STORE}, content_type=None)


def _parse_query(query: str) -> dict[str, str]:
    """Return the parameters of a query, or none if it is malformed or repeats one."""
    pairs = decode_form(query.encode()) or []
    return dict(pairs) if len(dict(pairs)) == len(pairs) else {}

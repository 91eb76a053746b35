"""What a response means: tokens, or one of three errors. No I/O, no storage."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urljoin

from tokenstore.errors import (
    ClientRejectedError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.models.failures import MAX_RETRY_AFTER
from tokenstore.models.timestamps import parse_seconds
from tokenstore.models.tokens import is_token
from tokenstore.oauth.addresses import host_of
from tokenstore.oauth.refusals import KNOWN_CODES, Refusal
from tokenstore.redaction import MIN_SECRET, Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenstore.oauth.http import HTTPResponse, TransportFailure
    from tokenstore.oauth.provider import Provider


class TokenResponseParser:
    """Turns a response into tokens, or into one of three errors; there is no fourth outcome.

    Args:
        provider: The provider that the request went to.
        sent: What was sent and is secret, besides the provider's credentials.
        account_name: The account, for errors.
        endpoint: The name of the endpoint that the request went to.
        unsure: What to say if a request was sent and there was no usable response.
    """

    def __init__(
        self,
        provider: Provider,
        sent: Iterable[str],
        account_name: str,
        *,
        endpoint: str = "token_endpoint",
        unsure: str = "the refresh token may have been spent",
    ) -> None:
        self._provider = provider
        self._account_name = account_name
        self._endpoint = endpoint
        # What renews a grant of no user can be sent again, and no sign-in would help.
        self._renewable = provider.is_unattended and endpoint == "token_endpoint"
        self._unsure = "try again later" if self._renewable else unsure
        self._url = getattr(provider, endpoint) or ""
        self._host = host_of(self._url)
        self._sent = tuple(sent)

    @cached_property
    def _redactor(self) -> Redactor:
        return Redactor(_secrets(self._provider, self._sent))

    def error_of_failure(self, failure: TransportFailure) -> TokenRefreshError:
        """Return the error of a request without a response."""
        if failure.refuses_client:
            return ClientRejectedError(
                f"{self._subject()} at {self._host}: {failure.reason}; check certificate_file, and "
                "which certificate is registered with the provider",
                **self._details(None, None, None),
            )
        after = self._unsure if failure.sent else "try again later"
        return TransientRefreshError(
            f"{self._subject()} at {self._host}: {failure.reason}; {after}",
            maybe_spent=failure.sent and not self._renewable,
            **self._details(None, None, None),
        )

    def parse(
        self, response: HTTPResponse, *, needed: str = "access_token", refresh_token: str = ""
    ) -> dict[str, Any] | TokenRefreshError:
        """Return the fields of a successful response, or the error that another one means.

        Args:
            response: The response.
            needed: The field that makes a response a successful one.
            refresh_token: The one that was sent. A new one makes a success, even alone.
        """
        if 300 <= response.status < 400:  # noqa: PLR2004
            target = self._target(response)
            return ClientRejectedError(
                f"{self._subject()} at {self._host} redirects to {target}, which is not followed; "
                f"set the right {self._endpoint}",
                **self._details(response.status, None, None),
            )
        body = _parse(response)
        fields = self._success(response.status, body, needed, refresh_token)
        if fields is not None:
            return fields
        return self._refused(response, Refusal(response.status, body))

    def _success(
        self, status: int, body: object, needed: str, refresh_token: str
    ) -> dict[str, Any] | None:
        path = self._provider.response_path if needed == "access_token" else None
        if path and (tokens := find_tokens(body, path)) and "access_token" in tokens:
            return tokens
        if isinstance(body, dict) and is_token(body.get(needed)):
            return body
        if needed != "access_token" or not 200 <= status < 300:  # noqa: PLR2004
            return None
        tokens = find_tokens(body, path)
        if tokens is None:
            return None
        is_new = tokens.get("refresh_token") not in {None, refresh_token}
        failed = isinstance(body, dict) and body.get("error")  # it may repeat what was sent
        alone = refresh_token and is_new and not failed
        return tokens if "access_token" in tokens or alone else None

    def _refused(self, response: HTTPResponse, refusal: Refusal) -> TokenRefreshError:
        redact = self._redactor.redact
        code, words = refusal.code, refusal.description
        error = code if code in KNOWN_CODES else redact(code, 100)  # even if a secret is part of it
        description = redact(words, 500)
        details = self._details(response.status, error, description)
        shown = ": ".join(part for part in (error, description) if part)
        said = f"{self._subject()} answered HTTP {response.status}" + (f" {shown}" if shown else "")
        meaning = refusal.meaning(self._provider.failures, partial(redact, limit=1000))
        if meaning == "reauthorization" and self._renewable:
            return ClientRejectedError(
                f"{said}; check this machine's clock, the client's key, and what the provider "
                "allows the client to do",
                **details,
            )
        if meaning == "reauthorization":
            return ReauthorizationRequired(f"{said}; sign in again", **details)
        if meaning == "client":
            return ClientRejectedError(f"{said}; check the provider's configuration", **details)
        retry_after = _retry_after(response.headers)
        if meaning == "transient":
            when = "" if retry_after is None else f" in {retry_after:.0f} s"
            return TransientRefreshError(
                f"{said}; try again later{when}", retry_after=retry_after, **details
            )
        if 200 <= response.status < 300:  # noqa: PLR2004
            kind = redact(response.headers.get("Content-Type", "").split(";")[0], 80)
            return TransientRefreshError(
                f"{said} without a usable token ({kind or 'no content type'} from {self._host}); "
                f"{self._unsure}",
                retry_after=retry_after,
                maybe_spent=not self._renewable,
                **details,
            )
        unexplained = TransientRefreshError(
            f"{said}, which is not understood; try again later, or check the provider's "
            "configuration",
            retry_after=retry_after,
            **details,
        )
        unexplained.unexplained = True
        return unexplained

    def _target(self, redirect: HTTPResponse) -> str:
        try:
            url = urljoin(self._url, redirect.headers.get("Location", ""))
        except ValueError:
            return "?"
        return self._redactor.redact(host_of(url), 100) or "?"

    def _subject(self) -> str:
        return f"{self._account_name}: provider {self._provider.name!r}"

    def _details(
        self, status: int | None, error: str | None, description: str | None
    ) -> dict[str, Any]:
        return {
            "account_name": self._account_name,
            "provider": self._provider.name,
            "status_code": status,
            "error": error,
            "error_description": description,
        }


def _secrets(provider: Provider, sent: Iterable[str]) -> list[str]:
    """Return all that was sent and is secret; a short extra parameter is an ordinary word."""
    secrets = [*sent, provider.client_secret or ""]
    secrets += [str(v) for v in provider.extra_params.values() if len(str(v)) >= MIN_SECRET]
    if provider.auth_method == "client_secret_basic":
        secrets.append(provider.basic_credentials)
    return secrets


def _parse(response: HTTPResponse) -> Any:
    """Return the value in the body: JSON, else form-encoded, whatever its type claims to be."""
    if not response.body:
        return None
    parsed = parse_json(response.body, _charset(response.headers.get("Content-Type", "")))
    return _parse_form(response.body) if parsed is None else parsed


def find_tokens(data: object, path: str | None = None) -> dict[str, Any] | None:
    """Return the token set in a response, under its standard names.

    Some providers wrap it (``data``, ``body``), send a list of one, or write names in camel case.
    White space around a token is not part of it.

    Args:
        data: The parsed body.
        path: Where in it the token set is, as names with dots between them. Defaults to its top or
            one level down.
    """
    if isinstance(data, list) and len(data) == 1:
        (data,) = data
    for name in path.split(".") if path else ():
        data = data.get(name) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        return None
    nested = [] if path else [value for value in data.values() if isinstance(value, dict)]
    sets = (_as_token_set(fields) for fields in (data, *nested))
    return next((found for found in sets if found is not None), None)


def _as_token_set(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    named = {_STANDARD_NAMES.get(name, name): value for name, value in fields.items()}
    for name in ("access_token", "refresh_token"):
        value = named.get(name)
        if isinstance(value, str):
            named[name] = value.strip()
        if not is_token(named.get(name)):
            named.pop(name, None)
    return named if {"access_token", "refresh_token"} & named.keys() else None


_STANDARD_NAMES = {
    "accessToken": "access_token",
    "refreshToken": "refresh_token",
    "expiresIn": "expires_in",
    "tokenType": "token_type",
}


def parse_json(body: bytes, charset: str) -> Any:
    """Return the value; numbers that JSON does not have, and others cannot store, become null.

    JSON is UTF-8 whatever the header says (RFC 8259 section 8.1). Where it is not, the tokens are
    ASCII all the same, and a letter of another field must not cost them.
    """
    for encoding in (json.detect_encoding(body), charset, "latin-1"):
        try:
            text = body.decode(encoding).lstrip("\ufeff")
            return json.loads(
                text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_storable
            )
        except (ValueError, LookupError, RecursionError):
            continue
    return None


def _parse_form(body: bytes) -> dict[str, str] | None:
    try:
        text = body.decode("utf-8-sig").strip()
        pairs = parse_qsl(text, strict_parsing=True, max_num_fields=100)
    except ValueError:
        return None
    form = dict(pairs)
    return form if {"access_token", "error"} & form.keys() else None


def _charset(content_type: str) -> str:
    message = Message()
    message["Content-Type"] = content_type
    return str(message.get_content_charset() or "utf-8")


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _storable(text: str) -> int | None:
    return int(text) if len(text) < 1000 else None  # noqa: PLR2004 - far below Python's limit


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the provider asks to wait (RFC 9110 section 10.2.3), capped."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    seconds = parse_seconds(value)
    if seconds is None:
        moment, now = http_date(value), http_date(headers.get("Date")) or time.time()
        if moment is None:
            return None
        seconds = moment - now
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def http_date(value: str | None) -> float | None:
    """Return a date of HTTP (RFC 9110 section 5.6.7) in UTC epoch seconds, None if it is none."""
    if value is None:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None

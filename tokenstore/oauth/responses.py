"""What an answer means: a token, or one of three errors. No I/O, no storage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cached_property
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
from tokenstore.oauth.http import HTTPResponse, TransportFailure, host_of
from tokenstore.redaction import MIN_SECRET, Redactor

if TYPE_CHECKING:
    from tokenstore.oauth.provider import Provider

# Codes of RFC 6749 section 5.2, and what providers send in their place.
_REAUTHORIZE = {
    "invalid_grant",
    "bad_refresh_token",
    "invalid_refresh_token",
    "refresh_token_expired",
    "refresh_token_reused",
    "token_expired",
    "token_revoked",
    "consent_required",
    "interaction_required",
    "login_required",
}
_REJECTED = {
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_request",
    "invalid_scope",
    "incorrect_client_credentials",
}
_TRANSIENT = {
    "server_error",
    "temporarily_unavailable",
    "internal_failure",
    "slow_down",
    "rate_limit_exceeded",
    "rate_limited",
    "too_many_requests",
}
_KNOWN = _REAUTHORIZE | _REJECTED | _TRANSIENT
_TRANSIENT_STATUS = {408, 425, 429}


class TokenResponseParser:
    """Turns what came back into tokens or one of three errors; there is no fourth outcome.

    Args:
        provider: Who was asked.
        sent: What was sent and is secret, besides the provider's credentials.
        account_name: Whose it is, for errors.
        endpoint: The name of the endpoint that was asked.
        unsure: What has to be said if a request was sent and nothing usable came back.
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
        self._unsure = unsure
        self._url = getattr(provider, endpoint) or ""
        self._host = host_of(self._url)
        self._sent = tuple(sent)

    @cached_property
    def _redactor(self) -> Redactor:
        return Redactor(_secrets(self._provider, self._sent))

    def silence(self, nothing: TransportFailure) -> TokenRefreshError:
        """Return the error of a request without an answer."""
        after = self._unsure if nothing.sent else "try again later"
        return TransientRefreshError(
            f"{self._who()} at {self._host}: {nothing.reason}; {after}",
            maybe_spent=nothing.sent,
            **self._details(None, None, None),
        )

    def answer(
        self, answer: HTTPResponse, *, needed: str = "access_token"
    ) -> dict[str, Any] | TokenRefreshError:
        """Judge an answer by its body first, then by its status.

        Args:
            answer: What came back.
            needed: The field that makes an answer a good one.
        """
        if 300 <= answer.status < 400:  # noqa: PLR2004
            target = self._target(answer)
            return ClientRejectedError(
                f"{self._who()} at {self._host} redirects to {target}, which is not followed; "
                f"set the {self._endpoint} that is meant",
                **self._details(answer.status, None, None),
            )
        body = _parse(answer)
        if body is not None and is_token(body.get(needed)):
            return body
        error, description = self._error_of(body or {})
        return self._refused(answer, error, description)

    def _refused(
        self, answer: HTTPResponse, error: str | None, description: str | None
    ) -> TokenRefreshError:
        details = self._details(answer.status, error, description)
        told = ": ".join(part for part in (error, description) if part)
        said = f"{self._who()} answered HTTP {answer.status}" + (f" {told}" if told else "")
        if error in _REAUTHORIZE:
            return ReauthorizationRequired(f"{said}; sign in again", **details)
        if error in _REJECTED:
            return ClientRejectedError(f"{said}; check the provider's configuration", **details)
        retry_after = _retry_after(answer.headers)
        if error in _TRANSIENT or is_transient(answer.status):
            when = "" if retry_after is None else f" in {retry_after:.0f} s"
            return TransientRefreshError(
                f"{said}; try again later{when}", retry_after=retry_after, **details
            )
        if 200 <= answer.status < 300:  # noqa: PLR2004
            kind = answer.headers.get("Content-Type", "").split(";")[0]
            kind = self._redactor.redact(kind, 80) or "no content type"
            return TransientRefreshError(
                f"{said} without a usable token ({kind} from {self._host}); {self._unsure}",
                retry_after=retry_after,
                maybe_spent=True,
                **details,
            )
        return ClientRejectedError(f"{said}; check the provider's configuration", **details)

    def _error_of(self, body: Mapping[str, Any]) -> tuple[str | None, str | None]:
        error = body.get("error")
        description = body.get("error_description")
        listed = body.get("errors")
        if error is None and isinstance(listed, list) and listed:
            error = listed[0]
        if isinstance(error, Mapping):  # {"error": {"code" or "status": …, "message": …}}
            description = description or error.get("message")
            codes = [error.get(key) for key in ("status", "code", "type", "errorType")]
            error = next((code for code in codes if isinstance(code, str)), None)
        known = isinstance(error, str) and error in _KNOWN  # even if a secret is part of it
        redact = self._redactor.redact
        return error if known else redact(error, 100), redact(description, 500)

    def _target(self, redirect: HTTPResponse) -> str:
        try:
            url = urljoin(self._url, redirect.headers.get("Location", ""))
        except ValueError:
            return "?"
        return self._redactor.redact(host_of(url), 100) or "?"

    def _who(self) -> str:
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


def is_transient(status: int) -> bool:
    """Tell whether an HTTP status means that the same request may succeed later."""
    return status in _TRANSIENT_STATUS or status >= 500  # noqa: PLR2004


def _parse(answer: HTTPResponse) -> dict[str, Any] | None:
    """Return the object in the body: JSON, else form-encoded, whatever its type claims to be."""
    if not answer.body:
        return None
    charset = _charset(answer.headers.get("Content-Type", ""))
    parsed = parse_json(answer.body, charset)
    if parsed is None:
        parsed = _parse_form(answer.body)
    return parsed if isinstance(parsed, dict) else None


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

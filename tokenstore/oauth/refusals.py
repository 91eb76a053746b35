"""What a refusal means: sign in again, try later, or correct the client. By words, not by status.

RFC 6749 section 5.2 has codes for it; providers use words of their own, in fields of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Codes of RFC 6749 section 5.2 and RFC 8707 section 2, and what providers send instead.
_REAUTHORIZE = {
    "invalid_grant",
    "invalid_code",
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
_CLIENT = {
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "invalid_resource",
    "incorrect_client_credentials",
    "unsupported_token_type",
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
KNOWN_CODES = _REAUTHORIZE | _CLIENT | _TRANSIENT | {"invalid_request"}
_TRANSIENT_STATUS = {408, 425, 429}

# Where providers put their words, besides "error" and "error_description".
_WORDS = {
    *("error", "error_description", "error_code", "errorcode", "error_message", "error_type"),
    *("errors", "errortype", "message", "status", "code", "type", "reason", "detail", "title"),
    *("field", "resource", "sub_code", "subcode"),
}
_BUSY_WORDS = re.compile(
    r"being processed|in progress|try again (in|later|shortly|soon)|rate limit"
    r"|too many( \w+)? (requests|attempts|calls)"
)
_OVER = r"(invalid|expired|revoked|unknown|used|reused|not found|does not exist|bad|not valid)"
_SUBJECT = (
    r"(refresh ?token|(?<!access )token(?! (endpoint|url|type|request|format))|grant(?! type))"
)
_TOKEN_WORDS = re.compile(rf"\b{_OVER}\b.{{0,60}}\b{_SUBJECT}\b|\b{_SUBJECT}\b.{{0,60}}\b{_OVER}\b")
_NOT_GIVEN = re.compile(
    r"missing(?! or )|required|not provided|(unknown|unsupported|unrecognized) parameter"
)
_CLIENT_NAME = r"(client|application|app)"
_BAD_CLIENT = (
    r"(invalid|unknown|not found|does not exist|disabled|suspended|deleted|inactive|wrong"
    r"|incorrect|bad|not (allowed|authorized|valid|permitted)|unauthorized)"
)
_CLIENT_WORDS = re.compile(
    rf"\b{_CLIENT_NAME} ?(id|secret|credentials)\b"
    rf"|\b{_BAD_CLIENT}\b.{{0,40}}\b{_CLIENT_NAME}\b|\b{_CLIENT_NAME}\b.{{0,40}}\b{_BAD_CLIENT}\b"
)

Meaning = Literal["reauthorization", "transient", "client"]


class Refusal:
    """What a provider said when it gave no tokens, in RFC 6749's words or in its own.

    Attributes:
        code: The error code, or None.
        description: The provider's explanation, or None.
    """

    def __init__(self, status: int, body: object) -> None:
        self._status = status
        self._texts = list(_texts(body))
        self._has_error = isinstance(body, Mapping) and any(
            value and str(name).lower().startswith("err") for name, value in body.items()
        )
        self._is_temporary = isinstance(body, Mapping) and body.get("temporary") is True  # Fastmail
        self.code, self.description = _code_and_description(body, self._texts)

    def meaning(
        self, failures: Iterable[Mapping[str, Any]], hide: Callable[[str], str | None] = str
    ) -> Meaning | None:
        """Return what it means: by the provider's rules, then by the general ones.

        Args:
            failures: The provider's rules.
            hide: Removes secrets, whose letters may happen to be one of the words.
        """
        for failure in failures:
            if self._matches(failure):
                means: Meaning = failure["means"]
                return means
        said = (hide(text) for text in self._texts if text not in KNOWN_CODES)
        words = " ".join(_normalized(text or "") for text in said)
        codes = {text.lower() for text in (self.code or "", *self._texts)}
        refused = self._status >= 400 or self._has_error  # noqa: PLR2004
        about_token = (
            _TOKEN_WORDS.search(words)
            and not _NOT_GIVEN.search(words)
            # Other tokens exist: of a form, of a robot check.
            and (self._status in {400, 401} or re.search("refresh|grant", words))
        )
        rules: tuple[tuple[object, Meaning], ...] = (
            (self._is_temporary or _BUSY_WORDS.search(words), "transient"),
            (codes & _REAUTHORIZE, "reauthorization"),
            # This code is about the client, unless the words are about the token (Atlassian).
            ("unauthorized_client" in codes and about_token, "reauthorization"),
            (codes & _CLIENT, "client"),
            (codes & _TRANSIENT or is_transient(self._status), "transient"),
            (refused and about_token, "reauthorization"),
            (refused and self.code == "invalid_request", "client"),
            (refused and _CLIENT_WORDS.search(words), "client"),
        )
        return next((means for applies, means in rules if applies), None)

    def _matches(self, failure: Mapping[str, Any]) -> bool:
        words = "\n".join(self._texts).lower()
        return (
            failure.get("status") in {None, self._status}
            and ("error" not in failure or failure["error"] in {self.code, *self._texts})
            and str(failure.get("contains", "")).lower() in words
        )


def _texts(value: object, depth: int = 4) -> Iterator[str]:
    """Yield every text of an error response, wherever providers put them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)) and depth:
        for item in value[:20]:
            yield from _texts(item, depth - 1)
    elif isinstance(value, Mapping) and depth:
        for name, item in value.items():
            if str(name).lower() in _WORDS:
                yield from _texts(item, depth - 1)


def _code_and_description(body: object, texts: list[str]) -> tuple[str | None, str | None]:
    """Return the error code and the description that errors have as attributes."""
    if not isinstance(body, Mapping):
        return None, None
    error, description = body.get("error"), body.get("error_description")
    if isinstance(error, Mapping):  # {"error": {"code" or "status": …, "message": …}}
        description = description or error.get("message")
        error = next((error[k] for k in _CODES if isinstance(error.get(k), str)), None)
    if not isinstance(error, str):
        error = next((body[k] for k in _CODES if isinstance(body.get(k), str)), None)
    listed = body.get("errors")
    if error is None and isinstance(listed, list) and listed and isinstance(listed[0], str):
        error = listed[0]
    if not isinstance(description, str):
        description = "; ".join(text for text in texts if text != error) or None
    return error, description


_CODES = ("code", "status", "type", "errorType", "error_code")


def _normalized(text: str) -> str:
    """Return *text* in lower case with spaces between its words, however they were joined."""
    return re.sub(r"[_\W]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)).lower()


def is_transient(status: int) -> bool:
    """Tell whether an HTTP status means that the same request may succeed later."""
    return status in _TRANSIENT_STATUS or status >= 500  # noqa: PLR2004

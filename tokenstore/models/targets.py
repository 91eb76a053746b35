"""Targets: which further access token of a login is meant, besides the account's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tokenstore.errors import InvalidTokenError

if TYPE_CHECKING:
    from tokenstore.errors import TokenRefreshError
    from tokenstore.models.failures import Failure

MAX_FURTHER_TOKENS = 32
"""Further access tokens that an account keeps; the longest expired leave first."""

_MAX_TEXT = 4096  # characters
_PART = re.compile(r"[!#-\[\]-~]+")  # as RFC 6749 section 3.3 has a scope
_RESOURCE = re.compile(r'resource="([^"]*)"')

# Refusals of what was asked for (RFC 6749 section 5.2, RFC 8707 section 2, OpenID Connect Core
# section 3.1.2.6), by policies too: the login itself may be sound.
_REFUSALS = {
    *("invalid_scope", "invalid_target", "invalid_resource", "access_denied"),
    *("unauthorized_client", "consent_required", "interaction_required"),
}
# Missing consent and policies for one resource, which Microsoft sends as invalid_grant.
_MICROSOFT = re.compile(
    r"AADSTS(65001|65004|500011|50076|50079|50105|50158|53000|53001|53002|53003|90094)\b"
)


@dataclass(frozen=True)
class Target:
    """The scope, the resources, or both, for which a further access token is requested.

    Attributes:
        scopes: Scopes, sorted, each once.
        resources: What the token is for (RFC 8707), sorted, each once: URIs, or the names that a
            provider's ``audience`` has.
    """

    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, scope: str | Iterable[str] | None, resource: str | Iterable[str] | None
    ) -> Target | None:
        """Return the target of a call, or None if it asks for the account's own token.

        Args:
            scope: A string with spaces, or strings; the order does not matter.
            resource: A URI, or several.

        Raises:
            InvalidTokenError: An argument is empty, or is not made of such strings.
        """
        if scope is None and resource is None:
            return None
        return _target(_strings("scope", scope), _strings("resource", resource))

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target of a `text`."""
        found = [(part, _RESOURCE.fullmatch(part)) for part in text.split(" ") if part]
        return cls(
            tuple(part for part, resource in found if resource is None),
            tuple(resource[1] for _, resource in found if resource is not None),
        )

    @property
    def scope(self) -> str | None:
        """The scopes as one string, or None."""
        return " ".join(self.scopes) or None

    @cached_property
    def text(self) -> str:
        """The target as text, the same for equal targets: scopes, then ``resource="URI"``."""
        return " ".join([*self.scopes, *(f'resource="{each}"' for each in self.resources)])

    @cached_property
    def digest(self) -> str:
        """A hash of the text, which is too long for an index."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


def arguments_of(target: Target | None) -> dict[str, Any]:
    """Return the arguments of a manager's method that name a target, none for None."""
    if target is None:
        return {}
    return {"scope": target.scope, "resource": target.resources or None}


def is_refused_target(target: Target | None, refusal: Failure | TokenRefreshError) -> bool:
    """Return whether a failure is about the scope or resource alone, and not about the login.

    Args:
        target: The target of the request, None if it was for the account's own token.
        refusal: The failure.
    """
    if target is None:
        return False
    description = refusal.error_description or ""
    return refusal.error in _REFUSALS or bool(_MICROSOFT.search(description))


@lru_cache(maxsize=1024)
def _target(scopes: tuple[str, ...], resources: tuple[str, ...]) -> Target:
    parts = [part for scope in scopes for part in scope.split(" ") if part]
    if scopes and not parts:
        raise InvalidTokenError("scope", "must not be empty")
    for name, values in (("scope", parts), ("resource", resources)):
        if not all(map(_PART.fullmatch, values)):
            raise InvalidTokenError(
                name, "expected printable ASCII characters without quotes and backslashes"
            )
    target = Target(tuple(sorted(set(parts))), tuple(sorted(set(resources))))
    if len(target.text) > _MAX_TEXT:
        raise InvalidTokenError("scope", f"longer than {_MAX_TEXT} characters with the resources")
    return target


def _strings(name: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the strings of an argument; none if it is None."""
    if value is None:
        return ()
    given: tuple[object, ...] = (value,)
    if not isinstance(value, str):
        given = tuple(value) if isinstance(value, Iterable) else (value,)
    if not given:
        raise InvalidTokenError(name, "must not be empty")
    strings = tuple(each for each in given if isinstance(each, str))
    if len(strings) != len(given):
        raise InvalidTokenError(name, "expected a string, or strings")
    if not all(strings):
        raise InvalidTokenError(name, "must not be empty")
    return strings

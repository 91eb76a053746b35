"""The user of an id_token (OpenID Connect Core 1.0): who signed in, and who did before."""

from __future__ import annotations

import base64
import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenstore.models.accounts import is_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant

_CLOCK_LEEWAY = 120  # seconds
_MAX_NAME = 100
_USER_CLAIMS = ("iss", "sub", "email", "preferred_username")


@dataclass(frozen=True, slots=True)
class Subject:
    """A user at a provider.

    Attributes:
        issuer: The issuer of the identifier, or None if unknown.
        identifier: The ``sub`` claim, which an issuer never assigns to another user.
        name: A name to show: the e-mail address, if there is one.
        addresses: E-mail addresses, each with whether the provider vouches for it.
    """

    issuer: str | None
    identifier: str
    name: str
    addresses: tuple[tuple[str, bool], ...] = ()

    def differs_from(self, other: Subject) -> bool:
        """Return whether this is a different user."""
        comparable = None not in {self.issuer, other.issuer}
        return self.identifier != other.identifier or (comparable and self.issuer != other.issuer)

    def has_address(self, address: str) -> bool | None:
        """Return whether the user has an e-mail address; None if that is unknown."""
        vouched = [is_vouched for own, is_vouched in self.addresses if own == address.casefold()]
        if any(vouched):
            return True
        return None if vouched or not self.addresses else False


def signed_in_subject(context: SignInContext, grant: TokenGrant) -> Subject | None:
    """Return who signed in, or None if the response has no id_token.

    The id_token came from the token endpoint over TLS, so its signature is not checked (section
    3.1.3.7); its claims are.

    Raises:
        SignInError: The id_token is not for this sign-in.
    """
    token = grant.response.get("id_token")
    if token is None:
        return None
    parts = _decode_jwt(token)
    if parts is None:
        raise context.sign_in_error("the provider's id_token is malformed; nothing was stored")
    header, claims = parts
    from authlib.oidc.core import CodeIDToken
    from joserfc.errors import JoseError

    provider = context.provider
    options: dict[str, Any] = {"aud": {"essential": True, "value": provider.client_id}}
    if provider.issuer is not None:
        # Google's documentation says that its issuer may lack the scheme.
        issuers = [provider.issuer, provider.issuer.removeprefix("https://")]
        options["iss"] = {"essential": True, "values": issuers}
    params = {
        "nonce": grant.nonce,
        "client_id": provider.client_id,
        "access_token": grant.response["access_token"],
    }
    try:
        CodeIDToken(claims, header, options, params).validate(int(context.clock()), _CLOCK_LEEWAY)
    except (JoseError, TypeError, ValueError, KeyError, AttributeError) as error:
        claim = getattr(error, "claim", None)
        problem = f"its {claim!r} is wrong" if isinstance(claim, str) else "it is malformed"
        raise context.sign_in_error(
            f"the provider's id_token is not for this sign-in: {problem}; nothing was stored; "
            "check the clock and the provider's issuer and client_id"
        ) from None
    return _subject(claims)


def stored_subject(tokens: Mapping[str, Any]) -> Subject | None:
    """Return the user of stored tokens, or None if unknown."""
    parts = _decode_jwt(tokens.get("id_token"))
    return _subject(tokens if parts is None else parts[1])


def may_replace(new: object, old: object) -> bool:
    """Return whether an id_token from a refresh may replace the stored one (section 12.2).

    Issuer and subject are compared by the caller.
    """
    parts, before = _decode_jwt(new), _decode_jwt(old)
    if parts is None or before is None:
        return parts is not None
    claims, known = parts[1], before[1]
    if not _audience(known) <= _audience(claims):
        return False
    return all(claims.get(name) in (None, known.get(name)) for name in ("azp", "nonce"))


def _audience(claims: Mapping[str, Any]) -> set[str]:
    value = claims.get("aud")
    return {
        name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)
    }


def user_fields(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims of stored tokens that say whose they are, to store without an id_token."""
    parts = _decode_jwt(tokens.get("id_token"))
    claims = tokens if parts is None else parts[1]
    return {name: claims[name] for name in _USER_CLAIMS if isinstance(claims.get(name), str)}


def _subject(claims: Mapping[str, Any]) -> Subject | None:
    identifier, issuer = claims.get("sub"), claims.get("iss")
    if not isinstance(identifier, str) or not identifier:
        return None
    names = (claims.get(claim) for claim in ("email", "preferred_username"))
    name = next((name for name in names if isinstance(name, str) and name), identifier)
    return Subject(
        issuer.removeprefix("https://") if isinstance(issuer, str) else None,
        identifier,
        "".join(c if c.isprintable() else "?" for c in name)[:_MAX_NAME],
        tuple(_addresses(claims)),
    )


def _addresses(claims: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    # Microsoft sends no email_verified; some providers send it as text.
    is_verified = claims.get("email_verified")
    is_vouched = is_verified is True or is_verified == "true"
    for claim in ("email", "preferred_username", "upn"):
        value = claims.get(claim)
        if isinstance(value, str) and is_address(value):
            address = unicodedata.normalize("NFC", value).casefold()
            yield address, is_vouched and claim == "email"


def _decode_jwt(token: object) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return header and claims of a JWT (RFC 7519) without checking its signature."""
    if not isinstance(token, str) or token.count(".") != 2:  # noqa: PLR2004
        return None
    try:
        header, claims = (json.loads(_decode(part)) for part in token.split(".")[:2])
    except (ValueError, RecursionError):
        return None
    return (header, claims) if isinstance(header, dict) and isinstance(claims, dict) else None


def _decode(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)

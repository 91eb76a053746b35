"""Who signed in: what an id_token says (OpenID Connect Core 1.0), and who it was before."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant

_LEEWAY = 120  # seconds that clocks differ by
_MAX_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Subject:
    """A person at a provider.

    Attributes:
        issuer: Who says so, or None if that is not known.
        subject: The person's identifier there, which is never given to anybody else.
        shown: A name to show: the e-mail address, if there is one.
    """

    issuer: str | None
    subject: str
    shown: str

    def differs_from(self, other: Subject) -> bool:
        """Tell whether this is somebody else."""
        known = None not in {self.issuer, other.issuer}
        return self.subject != other.subject or (known and self.issuer != other.issuer)


def signed_in_subject(attempt: SignInContext, granted: TokenGrant) -> Subject | None:
    """Return who signed in, None if the answer has no id_token.

    The token came from the token endpoint over TLS, so its signature is not looked at (section
    3.1.3.7); what it says about itself is.

    Raises:
        SignInError: The id_token is not for this sign-in.
    """
    token = granted.response.get("id_token")
    if token is None:
        return None
    parts = _parts(token)
    if parts is None:
        raise attempt.failed("the id_token of the provider cannot be read; nothing was stored")
    header, claims = parts
    from authlib.oidc.core import CodeIDToken
    from joserfc.errors import JoseError

    provider = attempt.provider
    options: dict[str, Any] = {"aud": {"essential": True, "value": provider.client_id}}
    if provider.issuer is not None:
        # Google leaves out the scheme now and then, and says that it does.
        issuers = [provider.issuer, provider.issuer.removeprefix("https://")]
        options["iss"] = {"essential": True, "values": issuers}
    params = {
        "nonce": granted.nonce,
        "client_id": provider.client_id,
        "access_token": granted.response["access_token"],
    }
    try:
        CodeIDToken(claims, header, options, params).validate(int(attempt.clock()), _LEEWAY)
    except (JoseError, TypeError, ValueError, KeyError, AttributeError) as error:
        claim = getattr(error, "claim", None)
        which = f"{claim!r} in it is wrong" if isinstance(claim, str) else "it is malformed"
        raise attempt.failed(
            f"the id_token of the provider is not for this sign-in ({which}); nothing was stored; "
            "check the clock and the provider's issuer and client_id"
        ) from None
    return _identity(claims)


def stored_subject(tokens: Mapping[str, Any]) -> Subject | None:
    """Return whose stored tokens these are, None if they do not tell."""
    parts = _parts(tokens.get("id_token"))
    return _identity(tokens if parts is None else parts[1])


def _identity(claims: Mapping[str, Any]) -> Subject | None:
    subject, issuer = claims.get("sub"), claims.get("iss")
    if not isinstance(subject, str) or not subject:
        return None
    names = (claims.get(name) for name in ("email", "preferred_username"))
    shown = next((name for name in names if isinstance(name, str) and name), subject)
    issuer = issuer if isinstance(issuer, str) else None
    return Subject(
        issuer and issuer.removeprefix("https://"),
        subject,
        "".join(c if c.isprintable() else "?" for c in shown)[:_MAX_SHOWN],
    )


def _parts(token: object) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return header and claims of a JWT (RFC 7519) without a look at its signature."""
    if not isinstance(token, str) or token.count(".") != 2:  # noqa: PLR2004
        return None
    try:
        header, claims = (json.loads(_decode(part)) for part in token.split(".")[:2])
    except (ValueError, RecursionError):
        return None
    return (header, claims) if isinstance(header, dict) and isinstance(claims, dict) else None


def _decode(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)

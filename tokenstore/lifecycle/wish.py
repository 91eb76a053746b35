"""How somebody wants to sign in, and what is asked of the provider for that."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.oauth.flows.prompt import Prompt
    from tokenstore.oauth.provider import Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How somebody wants to sign in.

    Attributes:
        scope: Scopes to ask for in place of the provider's, or None.
        device: Whether by code (RFC 8628) in place of a redirect.
        force: Whether it may be somebody else than before, or another provider.
        patience: Seconds to wait for the person.
        port: The loopback port to come back to; 0: any that is free.
        prompt: Tells the person what to do, or None for the browser and stderr.
        wait: Sleeps for so many seconds.
    """

    scope: str | None = None
    device: bool = False
    force: bool = False
    patience: float = 300.0
    port: int = 0
    prompt: Callable[[Prompt], object] | None = None
    wait: Callable[[float], object] = time.sleep


def scope_of(provider: Provider, scope: str | None) -> str:
    """Return the scopes to ask for, each once. An issuer is one of OpenID Connect."""
    wanted = provider.scope if scope is None else scope
    always = provider.sign_in_scope
    if always is None and provider.issuer is not None:
        always = "openid"
    return " ".join(dict.fromkeys(f"{always or ''} {wanted or ''}".split()))

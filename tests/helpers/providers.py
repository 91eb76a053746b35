"""Providers and their errors, as several tests of providers need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import Provider

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "cs-canary-6e02"
ENDPOINT = "https://auth.example/token"
ISSUER = "https://auth.example"


def provider(**changes: Any) -> Provider:
    """Return a minimal provider with these changes."""
    return Provider(**{"name": "ours", "token_endpoint": ENDPOINT, "client_id": "app", **changes})


def configuration_error(function: Callable[..., object], *arguments: object) -> str:
    """Return the message of the error that a call raises, after a search for secrets in it."""
    with pytest.raises(ProviderConfigurationError) as caught:
        function(*arguments)
    error: BaseException | None = caught.value
    assert not caught.value.retryable
    while error is not None:
        assert SECRET not in f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return str(caught.value)

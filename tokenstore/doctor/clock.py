"""Compare this machine's clock with those of the providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, ok
from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.addresses import host_of
from tokenstore.oauth.http import TransportFailure, exchange
from tokenstore.oauth.responses import http_date

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenstore.oauth.registry import ProviderRegistry

_TIMEOUT = 10.0  # seconds for one provider
_TOLERANCE = 30.0  # seconds; beyond that, tokens expire noticeably early or late


def compare_clocks(
    registry: ProviderRegistry, names: Iterable[str], clock: Callable[[], float]
) -> Iterator[Finding]:
    """Ask each provider for the time, with a request that contains nothing of an account.

    Args:
        registry: The configured providers.
        names: The names of the providers to ask.
        clock: Returns this machine's time, in UTC epoch seconds.
    """
    for name in names:
        try:
            provider = registry.get(name)
        except ProviderConfigurationError:  # reported by `check_providers`
            continue
        url = provider.token_endpoint or provider.issuer or ""
        before = clock()
        response = exchange("HEAD", url, timeout=_TIMEOUT)
        now = (before + clock()) / 2
        if isinstance(response, TransportFailure):
            message = f"no response from {name} at {host_of(url)}: {response.reason}"
            yield Finding("clock", "warning", message, "check the network, then try again")
            continue
        provider_time = http_date(response.headers.get("Date"))
        if provider_time is None:
            yield Finding("clock", "info", f"{name} sends no valid Date header")
            continue
        # The header has whole seconds.
        difference = now - provider_time - 0.5
        if abs(difference) > _TOLERANCE:
            direction = "ahead of" if difference > 0 else "behind"
            message = f"this machine's clock is {abs(difference):.0f} s {direction} {name}'s"
            yield Finding("clock", "warning", message, "synchronize the clock with NTP")
        else:
            message = f"this machine's clock and {name}'s agree to within {_TOLERANCE:.0f} s"
            yield ok("clock", message)

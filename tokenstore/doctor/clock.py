"""This machine's clock against those of providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, ok
from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.http import TransportFailure, exchange, host_of
from tokenstore.oauth.responses import http_date

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenstore.oauth.registry import ProviderRegistry

_TIMEOUT = 10.0  # seconds for one provider
_TOLERANCE = 30.0  # seconds that clocks may differ by before tokens expire unexpectedly


def compare_clocks(
    providers: ProviderRegistry, names: Iterable[str], clock: Callable[[], float]
) -> Iterator[Finding]:
    """Ask each provider for the time, with a request that has nothing of an account in it.

    Args:
        providers: Where they are looked up.
        names: Their names.
        clock: This machine's time, in UTC epoch seconds.
    """
    for name in names:
        try:
            provider = providers.get(name)
        except ProviderConfigurationError:  # told already
            continue
        url = provider.token_endpoint or provider.issuer or ""
        before = clock()
        answer = exchange("HEAD", url, timeout=_TIMEOUT)
        now = (before + clock()) / 2
        if isinstance(answer, TransportFailure):
            what = f"{name} at {host_of(url)} gave no answer: {answer.reason}"
            yield Finding("clock", "warning", what, "check the network, then try again")
            continue
        theirs = http_date(answer.headers.get("Date"))
        if theirs is None:
            yield Finding("clock", "info", f"{name} does not say what time it is")
            continue
        # The header has whole seconds.
        off = now - theirs - 0.5
        if abs(off) > _TOLERANCE:
            which = "ahead of" if off > 0 else "behind"
            what = f"this machine's clock is {abs(off):.0f} s {which} that of {name}"
            yield Finding("clock", "warning", what, "set the clock right, with NTP")
        else:
            yield ok("clock", f"this machine and {name} agree to {_TOLERANCE:.0f} s")

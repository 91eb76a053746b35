"""``tokenstore providers``: what is configured, what is built in, and what each still needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, Store, pass_store
from tokenstore.cli.options import NAME, complete_provider, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderDescription

_WIDE = 90  # characters; a narrower terminal gets fewer columns
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


@click.command("providers")
@click.argument("name", required=False, type=NAME, shell_complete=complete_provider)
@json_option
@pass_store
def providers(store: Store, *, name: str | None, as_json: bool) -> int:
    """List the providers to sign in at, or describe the provider NAME.

    Lists those that are configured or built in, and what each still needs: environment variables,
    or keys in providers.toml. With NAME, shows what to register there and how long tokens are
    valid. Sends no request, reads no key file and shows no secret.

    \b
    Examples: tokenstore providers
              tokenstore providers github
    """  # noqa: D301 - click requires the character
    registry = store.registry()
    described = [registry.describe(n) for n in ([name] if name is not None else registry.names())]
    with store.repository() as repository:
        accounts = repository.listing.count_by_provider()
    if as_json:
        rows = [_summary(entry, accounts) for entry in described]
        if name is not None:
            rows[0] |= _details(described[0])
        output.print_results(rows, key="providers")
    elif name is not None:
        _print_details(described[0], accounts)
    elif output.is_terminal():
        _print_table(described, accounts)
    else:
        for entry in described:
            summary = _summary(entry, accounts)
            needs = " ".join(summary.pop("needs"))
            output.print_columns([*summary.values(), needs])
    return DONE


def _summary(entry: ProviderDescription, accounts: Mapping[str | None, int]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "source": entry.source,
        "ready": entry.problem is None,
        "needs": list(entry.needs),
        "token_endpoint": entry.provider and entry.provider.token_endpoint,
        "documentation": entry.built_in and entry.built_in.documentation,
        "accounts": accounts.get(entry.name, 0),
    }


def _details(entry: ProviderDescription) -> dict[str, Any]:
    provider, facts = entry.provider, entry.built_in
    if provider is None:
        return {"problem": entry.problem}
    never = math.isinf(provider.default_expires_in)
    return {
        "problem": entry.problem,
        "client": "confidential" if facts and facts.secret_required else "public or confidential",
        "redirect_uri": provider.callback_uri if facts is None or facts.loopback else None,
        "registration": facts and facts.registration,
        "registration_url": facts and facts.registration_url,
        "access_token_lifetime": None if never else provider.default_expires_in,
        "refresh_token_lifetime": provider.refresh_token_lifetime,
        "refresh_token_idle": provider.refresh_token_idle,
        "refresh_token_rotates": provider.refresh_token_rotates,
    }


def _print_table(described: list[ProviderDescription], accounts: Mapping[str | None, int]) -> None:
    wide = output.width() >= _WIDE
    rows = output.table("PROVIDER", *(("SOURCE", "ACCOUNTS") if wide else ()), "READY", "NEEDS")
    for entry in sorted(described, key=lambda e: (e.problem is not None, not accounts.get(e.name))):
        ready = ("yes", "green") if entry.problem is None else ("no", "yellow")
        needs = "\n".join(entry.needs) or (entry.problem or "-")
        more = (entry.source, str(accounts.get(entry.name, 0))) if wide else ()
        output.add_row(rows, entry.name, *more, ready, needs)
    output.print_table(rows, "no providers")
    output.print_line("\nWhat to register at one of them: tokenstore providers NAME", err=True)


def _print_details(entry: ProviderDescription, accounts: Mapping[str | None, int]) -> None:
    facts: dict[str, object] = {
        "provider": entry.name,
        "source": entry.source,
        "ready": "yes" if entry.problem is None else f"no: {entry.problem}",
        "needs": ", ".join(entry.needs),
        "accounts": accounts.get(entry.name, 0),
    }
    if entry.provider is not None:
        facts |= _facts(entry, entry.provider)
    for title, fact in facts.items():
        if fact not in {None, ""}:
            output.print_result(f"{title + ':':<15}" if output.is_terminal() else title, fact)


def _facts(entry: ProviderDescription, provider: Provider) -> dict[str, object]:
    known = entry.built_in
    rotates = {
        True: "; each refresh replaces it",
        False: "; a refresh does not end it",
        None: "",
    }[provider.refresh_token_rotates]
    limits = [
        f"for {_duration(provider.refresh_token_lifetime)}",
        f"for {_duration(provider.refresh_token_idle)} without use",
    ]
    given = provider.refresh_token_lifetime, provider.refresh_token_idle
    limited = ", ".join(text for text, seconds in zip(limits, given, strict=True) if seconds)
    secret = "requires a secret" if known and known.secret_required else "with or without a secret"
    may_return = known is None or known.loopback
    return {
        "endpoint": provider.token_endpoint or provider.issuer,
        "register": known and known.registration,
        "at": known and known.registration_url,
        "client": secret,
        "redirect URI": provider.callback_uri
        if may_return
        else "requires https; import tokens that another program obtained",
        "access token": f"{_lifetime(provider.default_expires_in)}, unless it says otherwise",
        "refresh token": (f"valid {limited}" if limited else "no limit is known") + rotates,
        "documentation": known and known.documentation,
    }


def _lifetime(seconds: float) -> str:
    return "does not expire" if math.isinf(seconds) else f"valid for {_duration(seconds)}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "ever"
    size, unit = next((u for u in _UNITS if seconds >= u[0] and not seconds % u[0]), _UNITS[-1])
    count = seconds / size
    return f"{count:.0f} {unit}{'s' * (count != 1)}"

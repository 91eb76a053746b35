"""Reads the serialized token caches of MSAL, which have one format in every language.

A cache has five sections. Their entries are related by home account (the user), environment (the
host of the authority) and client. Each combination is one *login* and becomes one account: access
tokens for different scopes, and one refresh token for all of them. The access token that expires
last becomes the account's own; the others of its tenant become further ones, each for its scopes.
The clients of a *family* share a refresh token, so that a client may have none of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenstore.errors import InvalidTokenError
from tokenstore.importers.formats import (
    ImportedAccount,
    UnreadableEntry,
    UnreadableFileError,
    account_from_entry,
    add_note,
)
from tokenstore.models.further_tokens import FurtherToken
from tokenstore.models.targets import Target
from tokenstore.models.timestamps import parse_timestamp
from tokenstore.models.tokens import is_token

if TYPE_CHECKING:
    from collections.abc import Iterable

_Entry = Mapping[str, Any]

_SECTIONS = ("Account", "RefreshToken", "AccessToken", "IdToken", "AppMetadata")
_TOKENS = {"RefreshToken", "AccessToken", "IdToken"}
_PUBLIC_CLOUD = "login.microsoftonline.com"
_ALIASES = {"login.windows.net", "login.microsoft.com", "sts.windows.net"}
_EMPTY = "is an MSAL token cache without logins"
_RENAMED = {"secret", "credential_type", "target", "expires_on"}
_RESERVED = {"access_token", "refresh_token", "expires_at", "expires_in"}


class _Login(NamedTuple):
    """A client's login of a home account, which is "" if the cache does not name it."""

    home_account_id: str
    environment: str
    client_id: str


class _Cache:
    """The entries of a cache, grouped.

    Attributes:
        logins: Entries by login and section.
        users: ``Account`` entries by home account and environment.
        families: The client family by environment and client.
        shared: Refresh tokens by home account, environment and client family.
        invalid: Number of invalid entries.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.logins: dict[_Login, dict[str, list[_Entry]]] = {}
        self.users: dict[tuple[str, str], list[_Entry]] = defaultdict(list)
        self.families: dict[tuple[str, str], object] = {}
        self.shared: dict[tuple[str, str, object], list[_Entry]] = defaultdict(list)
        self.invalid = 0
        for section in _SECTIONS:
            entries = data.get(section)
            if entries is None:
                continue
            for entry in entries.values() if isinstance(entries, Mapping) else [entries]:
                login = _login(entry, section)
                if login is None:
                    self.invalid += 1
                else:
                    self._add(section, login, entry)

    def _add(self, section: str, login: _Login, entry: _Entry) -> None:
        family = entry.get("family_id")
        if section == "Account":
            self.users[login[:2]].append(entry)
        elif section == "AppMetadata":
            self.families[login[1:]] = family if is_token(family) else None
        else:
            self.logins.setdefault(login, defaultdict(list))[section].append(entry)
            if section == "RefreshToken" and is_token(family):
                self.shared[*login[:2], family].append(entry)

    def refresh_token(self, login: _Login) -> _Entry:
        """Return the newest refresh token of a login, or else of its client family."""
        own = self.logins[login]["RefreshToken"]
        family = self.families.get(login[1:])
        return _latest(own or self.shared.get((*login[:2], family), []), "last_modification_time")

    def user(self, home_account_id: str, environment: str) -> _Entry:
        """Return the ``Account`` entry, of the home tenant if there is one: it has the username."""
        found = self.users.get((home_account_id, environment), [])
        tenant = home_account_id.rpartition(".")[2]
        return next((e for e in found if e.get("realm") == tenant), found[0] if found else {})

    def username(self, home_account_id: str, environment: str) -> str | None:
        """Return the username of a home account, or None if it is unknown."""
        username = self.user(home_account_id, environment).get("username")
        return username if is_token(username) else None


def recognizes(data: Mapping[str, Any]) -> bool:
    """Return whether parsed JSON is an MSAL token cache."""
    return any(isinstance(data.get(section), Mapping) for section in _SECTIONS)


def read_cache(data: Mapping[str, Any]) -> list[ImportedAccount | UnreadableEntry]:
    """Read a token cache.

    Args:
        data: The parsed JSON.

    Raises:
        UnreadableFileError: The cache has no logins.
    """
    cache = _Cache(data)
    # App-only tokens have no refresh token, and the application can request new ones at any time.
    app_only = [login for login, entries in cache.logins.items() if not _has_user(login, entries)]
    skipped = sum(len(cache.logins.pop(login)["AccessToken"]) for login in app_only)
    found = [_account(cache, login, name) for login, name in _names(cache).items()]
    signed_in = {login[:2] for login in cache.logins}
    for user in [user for user in cache.users if user not in signed_in]:
        name = cache.username(*user) or user[0]
        found.append(account_from_entry(name, {}, expires_at=None))
    if cache.invalid:
        found.append(UnreadableEntry(f"invalid entries: {cache.invalid}"))
    note = f"{_count(skipped)} of the application itself not imported" if skipped else None
    if not found:
        raise UnreadableFileError("; ".join(filter(None, (_EMPTY, note))))
    return add_note(found, note) if note else found


def _account(cache: _Cache, login: _Login, name: str) -> ImportedAccount | UnreadableEntry:
    entries = cache.logins[login]
    access = _latest(filter(_is_bearer, entries["AccessToken"]), "expires_on", "cached_at")
    refresh = cache.refresh_token(login)
    ids = [e for e in entries["IdToken"] if e.get("realm") == access.get("realm")]
    known = {**cache.user(*login[:2]), **refresh, **access}
    fields = {n: v for n, v in known.items() if n not in _RENAMED | _RESERVED}
    given = {
        "access_token": access.get("secret"),
        "refresh_token": refresh.get("secret"),
        "id_token": _latest(ids or entries["IdToken"]).get("secret"),
        "scope": access.get("target") or refresh.get("target"),
    }
    fields |= {n: v for n, v in given.items() if v is not None}
    fields["client_id"] = login.client_id  # a shared refresh token may name another client
    notes = []
    if not entries["RefreshToken"] and refresh:
        notes.append("the refresh token is shared by a client family")
    further = _further(entries["AccessToken"], access)
    if others := len(entries["AccessToken"]) - bool(access) - len(further):
        notes.append(f"{_count(others)} for other tenants or uses not imported")
    account = account_from_entry(
        name,
        fields,
        expires_at=access.get("expires_on"),
        obtained_at=parse_timestamp(refresh.get("last_modification_time")),
        note="; ".join(notes) or None,
    )
    return account if isinstance(account, UnreadableEntry) else replace(account, further=further)


def _further(entries: Iterable[_Entry], own: _Entry) -> tuple[FurtherToken, ...]:
    """Return the other access tokens of the own one's tenant, the latest for each scope."""
    found: dict[Target, FurtherToken] = {}
    for entry in sorted(entries, key=lambda each: parse_timestamp(each.get("expires_on")) or 0.0):
        expires_at = parse_timestamp(entry.get("expires_on"))
        same_tenant = entry.get("realm") == own.get("realm")
        if entry is own or not _is_bearer(entry) or not same_tenant or expires_at is None:
            continue
        scope, kind = entry.get("target"), entry.get("token_type")
        try:
            target = Target.of(scope, None) if isinstance(scope, str) else None
        except InvalidTokenError:
            target = None
        if target is not None and target.scope is not None:
            found[target] = FurtherToken(
                target=target,
                access_token=entry["secret"],
                token_type=kind if is_token(kind) else None,
                scope=target.scope,
                expires_at=expires_at,
            )
    return tuple(found.values())


def _names(cache: _Cache) -> dict[_Login, str]:
    """Return unique account names: the username, followed by other fields where necessary."""
    names = {
        login: cache.username(*login[:2]) or login.home_account_id or login.client_id
        for login in cache.logins
    }
    for field in ("client_id", "home_account_id", "environment"):
        counts = Counter(names.values())
        names = {
            login: name if counts[name] == 1 else f"{name}:{getattr(login, field)}"
            for login, name in names.items()
        }
    return names


def _login(entry: object, section: str) -> _Login | None:
    """Return the login of an entry, with the fields that its section has; None if it is invalid."""
    if not isinstance(entry, Mapping) or not is_token(entry.get("environment")):
        return None
    home_account_id = entry.get("home_account_id") or ""
    client_id = entry.get("client_id") or ""
    if not isinstance(home_account_id, str) or not isinstance(client_id, str):
        return None
    if section == "Account":
        client_id = ""
    elif not client_id or (section in _TOKENS and not is_token(entry.get("secret"))):
        return None
    environment = entry["environment"].lower()
    environment = _PUBLIC_CLOUD if environment in _ALIASES else environment
    return _Login(home_account_id, environment, client_id)


def _has_user(login: _Login, entries: Mapping[str, list[_Entry]]) -> bool:
    return bool(login.home_account_id or "RefreshToken" in entries or "IdToken" in entries)


def _is_bearer(entry: _Entry) -> bool:
    """Return whether an access token can be used without a key or special parameters."""
    return str(entry.get("token_type", "Bearer")).lower() == "bearer" and not entry.get(
        "ext_cache_key"
    )


def _latest(entries: Iterable[_Entry], *fields: str) -> _Entry:
    """Return the entry with the latest timestamps in *fields*, or an empty one if there is none."""
    return max(
        entries, key=lambda e: [parse_timestamp(e.get(f)) or 0.0 for f in fields], default={}
    )


def _count(tokens: int) -> str:
    return f"{tokens} access token{'s' if tokens > 1 else ''}"

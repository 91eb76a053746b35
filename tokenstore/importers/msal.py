"""The serialized token caches of MSAL, the same in each of its languages, to accounts.

A cache is five sections of entries that belong together by their home account (whose), the
environment (the authority's host) and the client. What a client holds of a home account is one
login: access tokens, each for other scopes, and one refresh token for all of them. Clients of a
*family* share theirs, so that a client may have none of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenstore.importers.formats import (
    TokenFile,
    UnreadableError,
    Unusable,
    from_storage,
    with_note,
)
from tokenstore.models.timestamps import parse_timestamp
from tokenstore.models.tokens import is_token

if TYPE_CHECKING:
    from collections.abc import Iterable

_Entry = Mapping[str, Any]

_SECTIONS = ("Account", "RefreshToken", "AccessToken", "IdToken", "AppMetadata")
_TOKENS = {"RefreshToken", "AccessToken", "IdToken"}
_PUBLIC_CLOUD = "login.microsoftonline.com"
_ALIASES = {"login.windows.net", "login.microsoft.com", "sts.windows.net"}
_EMPTY = "a token cache of MSAL without any login"
_RENAMED = {"secret", "credential_type", "target", "expires_on"}
_OURS = {"access_token", "refresh_token", "expires_at", "expires_in"}


class _Login(NamedTuple):
    """A client's login of a home account, which is "" where the provider did not name it."""

    home_account_id: str
    environment: str
    client_id: str


class _Cache:
    """The entries of a cache by what they belong to.

    Attributes:
        logins: The entries of each login, by section.
        people: The ``Account`` entries of each home account and environment.
        families: The family of each environment and client that is in one.
        shared: The refresh tokens of each home account, environment and family.
        strange: How many entries are not what they have to be.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.logins: dict[_Login, dict[str, list[_Entry]]] = {}
        self.people: dict[tuple[str, str], list[_Entry]] = defaultdict(list)
        self.families: dict[tuple[str, str], object] = {}
        self.shared: dict[tuple[str, str, object], list[_Entry]] = defaultdict(list)
        self.strange = 0
        for section in _SECTIONS:
            entries = data.get(section)
            if entries is None:
                continue
            for entry in entries.values() if isinstance(entries, Mapping) else [entries]:
                login = _login(entry, section)
                if login is None:
                    self.strange += 1
                else:
                    self._add(section, login, entry)

    def _add(self, section: str, login: _Login, entry: _Entry) -> None:
        family = entry.get("family_id")
        if section == "Account":
            self.people[login[:2]].append(entry)
        elif section == "AppMetadata":
            self.families[login[1:]] = family if is_token(family) else None
        else:
            self.logins.setdefault(login, defaultdict(list))[section].append(entry)
            if section == "RefreshToken" and is_token(family):
                self.shared[*login[:2], family].append(entry)

    def refresh_token(self, login: _Login) -> _Entry:
        """Return the login's newest refresh token, else that of its client's family."""
        own = self.logins[login]["RefreshToken"]
        family = self.families.get(login[1:])
        return _last(own or self.shared.get((*login[:2], family), []), "last_modification_time")

    def person(self, home_account_id: str, environment: str) -> _Entry:
        """Return the ``Account`` entry of the home tenant; a guest is called otherwise."""
        found = self.people.get((home_account_id, environment), [])
        tenant = home_account_id.rpartition(".")[2]
        return next((e for e in found if e.get("realm") == tenant), found[0] if found else {})

    def username(self, home_account_id: str, environment: str) -> str | None:
        """Return how the home account is called, None if nobody says."""
        username = self.person(home_account_id, environment).get("username")
        return username if is_token(username) else None


def recognizes(data: Mapping[str, Any]) -> bool:
    """Tell whether parsed JSON is a cache of MSAL."""
    return any(isinstance(data.get(section), Mapping) for section in _SECTIONS)


def from_cache(data: Mapping[str, Any]) -> list[TokenFile | Unusable]:
    """Read a cache.

    Args:
        data: The parsed JSON.

    Raises:
        UnreadableError: There is no account in it.
    """
    cache = _Cache(data)
    # What no user signed in for has no refresh token, and the application gets it at any time.
    own = [login for login, entries in cache.logins.items() if not _is_of_user(login, entries)]
    left = sum(len(cache.logins.pop(login)["AccessToken"]) for login in own)
    found = [_account(cache, login, name) for login, name in _names(cache).items()]
    signed_in = {login[:2] for login in cache.logins}
    for person in [person for person in cache.people if person not in signed_in]:
        name = cache.username(*person) or person[0]
        found.append(from_storage(name, {}, expires_at=None))
    if cache.strange:
        found.append(Unusable(f"{cache.strange} of its entries not understood"))
    note = f"{_count(left)} of the application itself left out" if left else None
    if not found:
        raise UnreadableError("; ".join(filter(None, (_EMPTY, note))))
    return with_note(found, note) if note else found


def _account(cache: _Cache, login: _Login, name: str) -> TokenFile | Unusable:
    entries = cache.logins[login]
    access = _last(filter(_is_bearer, entries["AccessToken"]), "expires_on", "cached_at")
    refresh = cache.refresh_token(login)
    ids = [e for e in entries["IdToken"] if e.get("realm") == access.get("realm")]
    known = {**cache.person(*login[:2]), **refresh, **access}
    fields = {n: v for n, v in known.items() if n not in _RENAMED | _OURS}
    given = {
        "access_token": access.get("secret"),
        "refresh_token": refresh.get("secret"),
        "id_token": _last(ids or entries["IdToken"]).get("secret"),
        "scope": access.get("target") or refresh.get("target"),
    }
    fields |= {n: v for n, v in given.items() if v is not None}
    fields["client_id"] = login.client_id  # a shared refresh token is another client's too
    notes = []
    if not entries["RefreshToken"] and refresh:
        notes.append("its refresh token is shared by a family of clients")
    if others := len(entries["AccessToken"]) - bool(access):
        notes.append(f"{_count(others)} for other scopes or uses left out")
    return from_storage(
        name,
        fields,
        expires_at=access.get("expires_on"),
        obtained_at=parse_timestamp(refresh.get("last_modification_time")),
        note="; ".join(notes) or None,
    )


def _names(cache: _Cache) -> dict[_Login, str]:
    """Return what the logins are called: by username, and by more of what tells equals apart."""
    names = {
        login: cache.username(*login[:2]) or login.home_account_id or login.client_id
        for login in cache.logins
    }
    for field in ("client_id", "home_account_id", "environment"):
        times = Counter(names.values())
        names = {
            login: name if times[name] == 1 else f"{name}:{getattr(login, field)}"
            for login, name in names.items()
        }
    return names


def _login(entry: object, section: str) -> _Login | None:
    """Return what an entry belongs to, as far as its section tells; None if it is not one."""
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


def _is_of_user(login: _Login, entries: Mapping[str, list[_Entry]]) -> bool:
    return bool(login.home_account_id or "RefreshToken" in entries or "IdToken" in entries)


def _is_bearer(entry: _Entry) -> bool:
    """Tell whether an access token is good by itself, and for whatever its scopes are for."""
    return str(entry.get("token_type", "Bearer")).lower() == "bearer" and not entry.get(
        "ext_cache_key"
    )


def _last(entries: Iterable[_Entry], *moments: str) -> _Entry:
    """Return the entry whose *moments* are the latest, an empty one if there is none."""
    return max(
        entries, key=lambda e: [parse_timestamp(e.get(m)) or 0.0 for m in moments], default={}
    )


def _count(tokens: int) -> str:
    return f"{tokens} access token{'s' if tokens > 1 else ''}"

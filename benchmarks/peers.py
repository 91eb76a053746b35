"""Other libraries, each used for many accounts as its documentation recommends."""

from __future__ import annotations

import base64
import json
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from authlib.oauth2.rfc6749 import OAuth2Token
from globus_sdk.token_storage import JSONTokenStorage, SQLiteTokenStorage, TokenStorageData
from google.oauth2.credentials import Credentials
from msal import TokenCache
from msal_extensions import FilePersistence, PersistedTokenCache

if TYPE_CHECKING:
    from pathlib import Path

_SERVER = "mail.example.com"


class Globus:
    """globus-sdk: a token storage with one namespace per account."""

    def __init__(
        self, path: Path, kind: type[SQLiteTokenStorage | JSONTokenStorage] = SQLiteTokenStorage
    ) -> None:
        self._path, self._kind = path, kind

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Store tokens."""
        data = TokenStorageData(
            resource_server=_SERVER,
            identity_id=None,
            scope=tokens["scope"],
            access_token=tokens["access_token"],
            refresh_token=tokens["refresh_token"],
            expires_at_seconds=int(tokens["expires_at"]),
            token_type=tokens["token_type"],
        )
        with closing(self._kind(self._path, namespace=name)) as storage:
            storage.store_token_data_by_resource_server({_SERVER: data})

    def load(self, name: str) -> TokenStorageData | None:
        """Read tokens."""
        with closing(self._kind(self._path, namespace=name)) as storage:
            return storage.get_token_data(_SERVER)

    def get_valid_token(self, name: str) -> str | None:
        """Return the token if it is valid."""
        data = self.load(name)
        return data.access_token if data and time.time() < data.expires_at_seconds - 60 else None


class Msal:
    """msal-extensions: one cache file for all accounts."""

    def __init__(self, path: Path) -> None:
        self.cache = PersistedTokenCache(FilePersistence(str(path)))

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Store tokens."""
        info = json.dumps({"uid": name, "utid": "example"}).encode()
        self.cache.add(
            {
                "client_id": "tokenstore",
                "scope": tokens["scope"].split(),
                "token_endpoint": "https://login.example.com/common/oauth2/v2.0/token",
                "response": {
                    "access_token": tokens["access_token"],
                    "refresh_token": tokens["refresh_token"],
                    "expires_in": int(tokens["expires_at"] - time.time()),
                    "client_info": base64.urlsafe_b64encode(info).decode(),
                },
            }
        )

    def get_valid_token(self, name: str) -> str | None:
        """Return the token if it is valid, by the query of ``acquire_token_silent``."""
        query = {"home_account_id": f"{name}.example"}
        for found in self.cache.search(TokenCache.CredentialType.ACCESS_TOKEN, query=query):
            if int(found["expires_on"]) > time.time() + 300:
                return str(found["secret"])
        return None


class GoogleAuth:
    """google-auth: credentials kept in memory by the application."""

    def __init__(self) -> None:
        self._credentials: dict[str, Credentials] = {}

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Keep credentials."""
        expiry = datetime.fromtimestamp(tokens["expires_at"], UTC).replace(tzinfo=None)
        self._credentials[name] = Credentials(  # type: ignore[no-untyped-call]
            tokens["access_token"], refresh_token=tokens["refresh_token"], expiry=expiry
        )

    def get_valid_token(self, name: str) -> str | None:
        """Return the token if it is valid."""
        credentials = self._credentials[name]
        return credentials.token if credentials.valid else None


class Authlib:
    """authlib: tokens kept in memory by the application."""

    def __init__(self) -> None:
        self._tokens: dict[str, OAuth2Token] = {}

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Keep a token."""
        self._tokens[name] = OAuth2Token.from_dict(tokens)

    def get_valid_token(self, name: str) -> str | None:
        """Return the token if it is valid."""
        token = self._tokens[name]
        return None if token.is_expired() else token["access_token"]

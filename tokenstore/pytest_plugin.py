"""Fixtures for testing applications; pytest discovers them automatically.

Their imports happen when a fixture is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.manager import TokenManager
    from tokenstore.testing import AuthorizationServer


@pytest.fixture
def tokenstore_server() -> Iterator[AuthorizationServer]:
    """A strict authorization server on loopback: `tokenstore.testing.AuthorizationServer`."""
    from tokenstore.testing import AuthorizationServer

    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def tokenstore_manager(
    tokenstore_server: AuthorizationServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TokenManager]:
    """A `TokenManager` with an empty store; `tokenstore_server` is its provider ``test``."""
    from tokenstore.manager import TokenManager

    database = tmp_path_factory.mktemp("tokenstore") / "tokens.db"
    with TokenManager(database, providers={"test": tokenstore_server.provider()}) as manager:
        yield manager

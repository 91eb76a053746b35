from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import Clock
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[AuthorizationServer]:
    with AuthorizationServer(clock=clock) as server:
        yield server

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.resource_server import Resource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.refreshes import World


@pytest.fixture
def resource(world: World) -> Iterator[Resource]:
    """A server that takes the access tokens of the world's provider."""
    with Resource(world.server.is_live) as resource:
        yield resource

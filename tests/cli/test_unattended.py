"""The command and accounts that belong to no user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.command import Ran
    from tokenstore.testing import AuthorizationServer


@pytest.fixture(autouse=True)
def service(providers: Path, server: AuthorizationServer) -> None:
    """A provider ``svc`` besides the others."""
    ours = server.provider()
    table = f"""
[svc]
grant_type = "client_credentials"
token_endpoint = "{server.token_endpoint}"
client_id = "{ours.client_id}"
client_secret = "{ours.client_secret}"
"""
    with providers.open("a", encoding="utf-8") as file:
        file.write(table)


@pytest.mark.usefixtures("database")
def test_the_first_token_makes_the_account(
    cli: Callable[..., Ran], server: AuthorizationServer
) -> None:
    ran = cli("token", "robot", "--provider", "svc")

    assert (ran.code, ran.err) == (0, "")
    assert server.is_live(ran.out.strip())
    [account] = cli("status", "--json").json["accounts"]
    assert (account["name"], account["provider"], account["state"]) == ("robot", "svc", "valid")
    [refresh] = cli("history", "--json").json["history"]
    assert (refresh["outcome"], refresh["sent"], refresh["received"]) == ("refreshed", "", "")


@pytest.mark.usefixtures("database")
def test_a_refresh_makes_it_as_well(cli: Callable[..., Ran]) -> None:
    assert cli("refresh", "robot", "--provider", "svc").code == 0
    assert cli("refresh", "robot").code == 0
    assert cli("refresh", "other").code == 5


@pytest.mark.usefixtures("database")
def test_login_says_that_it_is_not_needed(cli: Callable[..., Ran]) -> None:
    ran = cli("login", "robot", "--provider", "svc")

    assert ran.code == 2
    assert "provider 'svc' needs no sign-in" in ran.err

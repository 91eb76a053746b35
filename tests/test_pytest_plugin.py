from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

# What else is installed here, and takes long to load.
OTHERS = [f"-pno:{name}" for name in ("anyio", "hypothesispytest", "pytest_cov")]

APPLICATION = """
from urllib.request import Request, urlopen


def test_a_token_is_refreshed(tokenstore_server, tokenstore_manager):
    tokens = {**tokenstore_server.sign_in("alice"), "expires_in": -1}
    tokenstore_manager.save_tokens("alice", tokens, provider="test")
    token = tokenstore_manager.get_valid_token("alice")
    assert token != tokens["access_token"]
    assert tokenstore_server.is_live(token)
    assert len(tokenstore_server.requests) == 1


def test_each_test_has_its_own(tokenstore_server, tokenstore_manager, tmp_path):
    assert list(tokenstore_manager.accounts()) == []
    assert tokenstore_server.requests == []
    tokenstore_manager.save_tokens("alice", {"access_token": "a"})
    assert list(tmp_path.iterdir()) == []  # nothing of ours is in the test's own directory


def test_one_server_is_enough(tokenstore_server):
    with urlopen(f"{tokenstore_server.issuer}/.well-known/openid-configuration") as answer:
        assert answer.status == 200
"""
OWN_SERVER = """
import pytest
from tokenstore.testing import AuthorizationServer

@pytest.fixture
def tokenstore_server():
    with AuthorizationServer(expires_in=60) as server:
        yield server
"""
OF_OWN_SERVER = """
def test_it_is_asked(tokenstore_server, tokenstore_manager):
    tokens = {**tokenstore_server.sign_in("alice"), "expires_in": -1}
    tokenstore_manager.save_tokens("alice", tokens, provider="test")
    assert tokenstore_manager.refresh_token("alice")["expires_in"] == 60
"""


def test_an_application_tests_with_the_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_application=APPLICATION)
    pytester.mkdir("own")
    (pytester.path / "own" / "conftest.py").write_text(OWN_SERVER)
    (pytester.path / "own" / "test_own.py").write_text(OF_OWN_SERVER)

    done = pytester.runpytest_subprocess("-W", "error", *OTHERS)

    done.assert_outcomes(passed=4)


def test_loading_it_loads_nothing_that_pytest_has_not() -> None:
    code = """
import sys
import pytest
before = {*sys.modules}
import tokenstore.pytest_plugin
print(*sorted({*sys.modules} - before))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.split() == ["tokenstore", "tokenstore.pytest_plugin", "tokenstore.version"]


def test_our_own_tests_go_without_it(request: pytest.FixtureRequest) -> None:
    assert not request.config.pluginmanager.hasplugin("tokenstore")

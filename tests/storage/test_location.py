from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from sqlalchemy.engine import URL, make_url

from tests.helpers.command import COMMAND
from tests.helpers.requirements import needs_user_namespace
from tokenstore import TokenManager
from tokenstore.storage.location import display_name, locate, providers_file

SECRET = "pw-canary-33d8"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, no setting in the environment, and the home as current directory."""
    for variable in ("TOKENSTORE_DATABASE", "TOKENSTORE_PROVIDERS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLACES = {
    "relative": ("t.db", "t.db"),
    "no suffix": ("tokens", "tokens"),
    "in a directory": ("a/b/t.db", "a/b/t.db"),
    "dots": ("a/../t.db", "t.db"),
    "home": ("~/t.db", "t.db"),
    "unknown user's home": ("~no-such-user/t.db", "~no-such-user/t.db"),
    "a name that begins with a tilde": ("~t.db", "~t.db"),
    "blanks": ("my tokens.db", "my tokens.db"),
    "per cent": ("a%20b.db", "a%20b.db"),
    "question mark": ("a?mode=ro.db", "a?mode=ro.db"),
    "hash": ("a#b.db", "a#b.db"),
    "colon": ("file:t.db", "file:t.db"),
    "not ASCII": ("tökens.db", "tökens.db"),
    "path": (Path("a/t.db"), "a/t.db"),
    "URL": ("sqlite:///a/t.db", "a/t.db"),
    "URL with driver": ("sqlite+pysqlite:///a/t.db", "a/t.db"),
    "URL object": (URL.create("sqlite", database="a?b%20.db"), "a?b%20.db"),
    "parsed URL": (make_url("sqlite:///a/t.db"), "a/t.db"),
}


@pytest.mark.parametrize(("database", "place"), PLACES.values(), ids=PLACES)
def test_a_path_is_the_location_of_the_database(database: Any, place: str, home: Path) -> None:
    assert locate(database) == home / place


def test_an_absolute_path_is_unchanged(home: Path) -> None:
    path = home / "deep" / "t.db"

    assert locate(path) == locate(str(path)) == locate(f"sqlite:///{path}") == path


def test_a_symlink_is_not_followed_so_that_it_can_be_refused(home: Path) -> None:
    (home / "real.db").touch()
    (home / "link.db").symlink_to("real.db")

    assert locate("link.db") == home / "link.db"


def test_locate_creates_nothing(home: Path) -> None:
    locate("a/b/t.db")
    locate(None)

    assert list(home.iterdir()) == []


def test_the_default_is_in_the_users_data_directory(home: Path) -> None:
    place = locate(None)

    assert isinstance(place, Path)
    assert place.is_relative_to(home)
    assert (place.parent.name, place.name) == ("tokenstore", "tokens.db")


@pytest.mark.parametrize("value", ["set/t.db", "sqlite:///set/t.db", "~/set/t.db"])
def test_the_environment_variable_overrides_the_default(
    value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENSTORE_DATABASE", value)

    assert locate(None) == home / "set" / "t.db"
    assert locate("named.db") == home / "named.db"


def test_an_empty_environment_variable_is_ignored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENSTORE_DATABASE", "")
    monkeypatch.setenv("TOKENSTORE_PROVIDERS", "")

    assert Path(str(locate(None))).parent.name == "tokenstore"
    assert providers_file(home / "t.db") == (home / "providers.toml", False)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_postgresql_url_is_shown_without_its_secrets(scheme: str, home: Path) -> None:
    place = locate(f"{scheme}://user:{SECRET}@host:5/db?sslpassword={SECRET}&schema=mail")

    assert isinstance(place, URL)
    assert place.password == SECRET
    assert display_name(place) == "postgresql+psycopg://user@host:5/db?schema=mail"
    assert providers_file(place) == (home / "share" / "tokenstore" / "providers.toml", False)


def test_an_empty_password_is_not_shown_either() -> None:
    place = locate("postgresql://user:@/db?host=/run")

    assert display_name(place) == "postgresql+psycopg://user@/db?host=%2Frun"


REFUSED = {
    "nothing": "",
    "memory": ":memory:",
    "NUL": "a\0b",
    "bytes": b"t.db",
    "number": 5,
    "memory URL": "sqlite://",
    "named memory URL": "sqlite:///:memory:",
    "no database in the URL": "sqlite:///",
    "two slashes": "sqlite://t.db",
    "two slashes and a directory": "sqlite://tokens/t.db",
    "user": f"sqlite://user:{SECRET}@/t.db",
    "query": "sqlite:///t.db?mode=ro",
    "other system": f"mysql://user:{SECRET}@host/db",
    "other PostgreSQL driver": f"postgresql+psycopg2://user:{SECRET}@host/db",
    "no schema": f"postgresql://user:{SECRET}@host/db?schema=a;drop",
    "the server's schema": "postgresql://host/db?schema=pg_catalog",
    "two schemas": "postgresql://host/db?schema=a&schema=b",
    "other driver": "sqlite+aiosqlite:///t.db",
    "no URL": "://t.db",
    "half a surrogate pair": "t\ud800.db",
    "not a port": f"postgresql://user:p@ss:{SECRET}@host/db",
}


@pytest.mark.parametrize("database", REFUSED.values(), ids=REFUSED)
def test_an_invalid_location_is_a_value_error_without_the_password(database: Any) -> None:
    with pytest.raises(ValueError, match=r"^database: ") as caught:
        locate(database)

    assert SECRET not in str(caught.value)


def test_the_providers_file_is_next_to_the_database_and_optional(home: Path) -> None:
    assert providers_file(home / "x" / "t.db") == (home / "x" / "providers.toml", False)


@pytest.mark.parametrize(
    ("named", "place"),
    [("conf/p.toml", "conf/p.toml"), ("~/p.toml", "p.toml"), ("~p.toml", "~p.toml")],
)
def test_a_configured_providers_file_must_exist(
    named: str, place: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENSTORE_PROVIDERS", named)

    file, required = providers_file(home / "x" / "t.db")

    assert file is not None
    assert file.absolute() == home / place
    assert required


# -- a user without a home directory ------------------------------------------------------------


@pytest.fixture
def homeless(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the user have no home directory; return the current directory, which is empty."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return home


def test_without_a_home_the_error_says_what_to_set(homeless: Path) -> None:
    with pytest.raises(ValueError, match=r"^database: .*; set TOKENSTORE_DATABASE \(or --database"):
        TokenManager()

    assert list(homeless.iterdir()) == []


@pytest.mark.parametrize("directory", ["~/.local/share/tokenstore", "share/tokenstore"])
def test_a_data_directory_that_is_not_absolute_is_none(
    directory: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # platformdirs 4.2 returns these where later versions raise an error, and for a relative HOME.
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: Path(directory))

    with pytest.raises(ValueError, match=r"^database: there is no default"):
        locate(None)

    assert list(homeless.iterdir()) == []


def test_without_a_home_a_database_that_is_named_works(homeless: Path) -> None:
    with TokenManager("t.db") as manager:
        manager.save_tokens("alice", {"access_token": "a"})

    assert (homeless / "t.db").exists()
    assert providers_file(homeless / "t.db") == (homeless / "providers.toml", False)


def test_without_a_home_postgresql_has_no_providers_file(homeless: Path) -> None:  # noqa: ARG001
    place = locate("postgresql://user@host/db")

    assert providers_file(place) == (None, False)


@pytest.mark.parametrize("path", ["~/t.db", "~"])
def test_without_a_home_no_directory_is_called_tilde(
    path: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^database: ~.*: this user has no home directory"):
        locate(path)
    monkeypatch.setenv("TOKENSTORE_PROVIDERS", path)
    with pytest.raises(ValueError, match=r"^TOKENSTORE_PROVIDERS: ~.*: this user has no home"):
        providers_file(homeless / "t.db")


@needs_user_namespace
@pytest.mark.parametrize(
    "command", ["status", "token alice", "refresh --all", "doctor", "export x"]
)
def test_a_user_without_a_passwd_entry_is_told_to_name_the_database(
    command: str, tmp_path: Path
) -> None:
    ran = subprocess.run(
        ["unshare", "--user", "--map-user=54321", "--map-group=54321", *COMMAND, *command.split()],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "set TOKENSTORE_DATABASE" in ran.stderr
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tokenstore

if TYPE_CHECKING:
    from collections.abc import Callable

HEAVY = {"sqlalchemy", "alembic", "requests", "urllib3", "filelock", "platformdirs", "sqlite3"}
HEAVY |= {"httpx", "google"}
LOGIN_ONLY = {"authlib", "joserfc", "cryptography", "webbrowser"}
CLI_ONLY = {"click", "rich"}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that *statement* loads into a fresh interpreter."""
    code = (
        f"import sys; before = {{*sys.modules}}; {statement}\n"
        "print(*{name.partition('.')[0] for name in {*sys.modules} - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    return set(result.stdout.split())


def type_checked() -> dict[str, str]:
    """Return what a type checker sees: name to module."""
    tree = ast.parse(Path(tokenstore.__file__).read_text("utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `x as x` is exported by a typed package"
            found[alias.name] = str(node.module)
    return found


def test_all_names_are_sorted_and_stand_once() -> None:
    assert tokenstore.__all__ == sorted(set(tokenstore.__all__))


def test_the_type_checker_the_lazy_import_and_all_know_the_same_names() -> None:
    lazily = {name: f"tokenstore.{home}" for name, home in tokenstore._HOMES.items()}

    assert type_checked() == lazily
    assert set(lazily) == set(tokenstore.__all__)


def test_a_type_checker_reads_the_names_in_order() -> None:
    names = list(type_checked().items())

    assert names == sorted(names, key=lambda item: (item[1], item[0]))


@pytest.mark.parametrize("name", tokenstore.__all__)
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    value = getattr(tokenstore, name)

    assert value.__name__ == name
    assert value.__module__ == f"tokenstore.{tokenstore._HOMES[name]}"
    assert getattr(tokenstore, name) is value


@pytest.mark.parametrize("name", tokenstore.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(tokenstore, name))


def test_the_contract_names_what_is_public() -> None:
    errors = importlib.import_module("tokenstore.errors")
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TokenStoreError)
    }

    public = {"Account", "Provider", "TokenManager", "TokenRepository"}
    public |= {"AccessToken", "AsyncTokenManager", "HistoryEntry", "Prompt", "RefreshResult"}
    assert tree | public == set(tokenstore.__all__)


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}

    exec("from tokenstore import *", names)

    assert {*names} - {"__builtins__"} == set(tokenstore.__all__)


def test_dir_shows_the_public_names_before_they_are_used() -> None:
    code = "import tokenstore; assert {*tokenstore.__all__} <= {*dir(tokenstore)}"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tokenstore' has no attribute 'TokenManger'"):
        tokenstore.TokenManger  # noqa: B018
    assert not hasattr(tokenstore, "_rebuild")


def test_the_version_is_that_of_the_distribution() -> None:
    assert tokenstore.__version__ == version("tokenstore")
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", tokenstore.__version__)


def test_the_package_is_typed() -> None:
    assert Path(tokenstore.__file__).with_name("py.typed").exists()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert (
        loaded_by("import tokenstore") & (HEAVY | CLI_ONLY | LOGIN_ONLY | {"typing", "asyncio"})
        == set()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TokenManager", "TokenRepository"])
def test_a_store_is_imported_without_alembic_and_requests(name: str) -> None:
    loaded = loaded_by(f"from tokenstore import {name}")

    assert "sqlalchemy" in loaded
    assert loaded & ({"alembic", "requests", "urllib3"} | CLI_ONLY | LOGIN_ONLY) == set()


@pytest.mark.parametrize(
    "name", [n for n, home in tokenstore._HOMES.items() if home in {"errors", "providers"}]
)
def test_errors_and_providers_are_imported_without_anything_heavy(name: str) -> None:
    assert loaded_by(f"from tokenstore import {name}") & (HEAVY | CLI_ONLY) == set()


@pytest.mark.parametrize("call", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", ["AsyncTokenManager", "TokenManager", "TokenRepository"])
def test_d21_what_belongs_to_a_process_is_not_pickled(
    name: str, call: Callable[[object], object], tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=rf"^{name} cannot be pickled.*; pass the path or URL"):
        call(getattr(tokenstore, name)(tmp_path / "tokens.db"))

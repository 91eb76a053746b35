"""The rules of the house: who may import whom, and the places where only one module may act."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tokenstore

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(tokenstore.__file__).parent
ROWS = [  # a module imports from lower rows, or from its own package
    {"version", "errors", "redaction", "fork", "messages"},
    {"trust"},
    {"models", "files", "logs"},
    {"oauth", "storage"},
    {"lifecycle", "importers", "migrate", "testing"},
    {"manager", "jsonfiles"},
    {"aio", "doctor", "pytest_plugin"},
    {"cli", "integrations", "tokenstore", "__main__"},
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
SQLITE, POSTGRESQL = "storage.sqlite", "storage.postgresql"
MAY_USE_SQLITE = re.compile(r"storage\.factory|storage\.sqlite(\..+)?|doctor\.(sqlite|files)")
MAY_USE_POSTGRESQL = re.compile(
    r"storage\.factory|storage\.postgresql(\..+)?|doctor\.(postgresql|server)"
)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").rstrip(".") or "tokenstore"


MODULES = {name_of(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


CLIENTS = {"requests", "urllib3", "httpx", "http.client", "socket", "urllib.request"}
# The others connect to no provider: they listen, look up names, or call a resource server.
MAY_CONNECT = re.compile(
    r"oauth\.(http|deadline|addresses|flows\.loopback)|integrations\..+|testing\..+"
)


def imported(source: str, *, types: bool = True) -> Iterator[str]:
    """Yield the dotted name of everything that *source* imports, anywhere in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and not types and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules(source: str) -> set[str]:
    """Return the modules of the package that *source* imports."""
    found = set()
    for name in imported(source):
        package, _, path = name.partition(".")
        while package == "tokenstore" and path and path not in MODULES:
            path = path.rpartition(".")[0]
        if package == "tokenstore":
            found.add(path or "tokenstore")
    return found


def package_of(module: str) -> str:
    return "cli" if module == "__main__" else module.partition(".")[0]


def wrong(module: str, source: str) -> set[str]:
    """Return the packages that *source* must not import: of the same row, or of a higher one."""
    own = package_of(module)
    return {
        name for name in map(package_of, modules(source)) if name != own and ROW[name] >= ROW[own]
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_rows(module: str) -> None:
    assert wrong(module, MODULES[module]) == set()


@pytest.mark.parametrize(
    "source",
    [
        "from tokenstore.manager import TokenManager",
        "from tokenstore import manager",
        "from tokenstore import TokenManager",
        "import tokenstore",
        "if TYPE_CHECKING:\n    from tokenstore.storage.rows import to_tokens",
        "def f():\n    import tokenstore.cli.app as app",
    ],
)
def test_an_import_from_the_same_row_or_above_is_found_wherever_it_is(source: str) -> None:
    assert wrong("oauth.client", source)


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({m: modules(source) - {m} for m, source in MODULES.items()}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_only_the_factory_knows_the_backends(module: str) -> None:
    found = modules(MODULES[module])
    sqlite = {name for name in found if name.startswith(SQLITE)}
    if module.startswith("importers."):
        sqlite -= {f"{SQLITE}.engine", f"{SQLITE}.errors"}

    assert not sqlite or MAY_USE_SQLITE.fullmatch(module)
    if any(name.startswith(POSTGRESQL) for name in found):
        assert MAY_USE_POSTGRESQL.fullmatch(module)


def test_the_backends_have_the_same_file_names_for_the_same_duties() -> None:
    sqlite, postgresql = (
        {path.name for path in (PACKAGE / "storage" / engine).glob("*.py")}
        for engine in ("sqlite", "postgresql")
    )

    assert postgresql < sqlite


def test_only_one_module_opens_connections_to_a_provider() -> None:
    connecting = {
        module
        for module, source in MODULES.items()
        for name in imported(source, types=False)
        if any(name == client or name.startswith(f"{client}.") for client in CLIENTS)
    }

    assert "oauth.http" in connecting
    assert {module for module in connecting if not MAY_CONNECT.fullmatch(module)} == set()


def test_only_one_module_spends_a_refresh_token() -> None:
    spending = {m for m, source in MODULES.items() if "refresh_grant" in source}

    assert spending == {"lifecycle.refresh", "oauth.client"}


WRITERS = {"echo", "secho", "print", "add_row", "write", "confirm", "prompt"}
# What the command prints, and what the library itself shows.
MAY_WRITE = re.compile(r"cli(\.output|\.streams)?|migrate|oauth\.flows\.prompt|testing\..+")


def written(source: str) -> set[str]:
    """Return the names of what *source* calls that may write to a terminal."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "Console"} or re.search(r"^(click|sys\.std\w+)\.\w", called):
                found.add(called.rpartition(".")[2])
            elif called.endswith(".add_row") and not called.startswith("output."):
                found.add("add_row")
    return found & (WRITERS | {"Console"})


@pytest.mark.parametrize("module", MODULES)
def test_only_one_module_of_the_command_writes_to_a_terminal(module: str) -> None:
    """There, text of others is made printable."""
    found = written(MODULES[module])
    if module in {"cli.login", "cli.status"}:
        found -= {"Console"}  # of which one shows a countdown, and one asks for the width

    assert not found or MAY_WRITE.fullmatch(module)

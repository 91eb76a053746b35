from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tokenstore

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(tokenstore.__file__).parent

# From the bottom to the top; modules of one layer do not know each other. "x.*" is a package
# whose modules may know each other.
LAYERS = [
    ["errors", "sealed"],
    ["tokens", "location", "wholefile"],
    ["accounts", "providers", "schema", "formats", "storefile", "query", "turns"],
    [
        "cache",
        "globus",
        "hooks",
        "indexes",
        "logs",
        "locks",
        "msal",
        "providerfile",
        "sqlite",
        "workers",
    ],
    ["backup", "exchange", "foreign", "registry", "rows", "storage"],
    [
        "building",
        "fleet",
        "freshness",
        "judgement",
        "outlook",
        "prospects",
        "statements",
        "tokenfiles",
    ],
    ["oauth", "opening"],
    ["threads"],
    ["database", "postgresql.*"],
    ["stores"],
    ["journal", "listing", "migrate"],
    ["repository"],
    ["refresh", "jsonfiles", "signin.*"],
    ["selection"],
    ["manager"],
    ["aio", "doctor.*"],
    ["integrations.*"],
    ["__init__"],
    ["testing.script"],
    ["testing.protocol", "testing.pages", "testing.person", "testing.idtokens"],
    ["testing.codes", "testing.devices", "testing.listener"],
    ["testing.frontdoor", "testing.endpoints", "testing.stage"],
    ["testing.server"],
    ["testing"],
    ["pytest_plugin"],
    ["cli.*"],
    ["__main__"],
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def place_of(module: str) -> str | None:
    """Return the entry of the table that stands for a module."""
    package = f"{module.partition('.')[0]}.*"
    return next((entry for entry in (module, package) if entry in HEIGHT), None)


def imports(source: str, module: str) -> Iterator[str]:
    """Yield the modules of the package that *source* imports anywhere, for whatever reason."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from filter(None, (_inside(alias.name) for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"a relative import in {module}, line {node.lineno}"
                continue
            origin = _inside(node.module or "")
            for name in (alias.name for alias in node.names) if origin else ():
                inner = name if origin == "__init__" else f"{origin}.{name}"
                if inner in MODULES:
                    yield inner
                elif (origin, name) != ("__init__", "__version__"):
                    yield str(origin)


def _inside(module: str) -> str | None:
    if module == "tokenstore":
        return "__init__"
    return module.removeprefix("tokenstore.") if module.startswith("tokenstore.") else None


def upward(source: str, module: str) -> list[str]:
    """Return the imports of *source* that do not go down."""
    here = place_of(module)
    assert here is not None, f"{module} has no place in the table"
    wrong = []
    for imported in imports(source, module):
        there = place_of(imported)
        own = here == there and here.endswith(".*")
        if there is None or not (own or HEIGHT[there] < HEIGHT[here]):
            wrong.append(imported)
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_below_it(module: str) -> None:
    assert upward(MODULES[module].read_text("utf-8"), module) == []


def test_every_place_in_the_table_is_taken() -> None:
    assert set(HEIGHT) == {place_of(module) for module in MODULES}


def test_every_module_stands_in_one_layer() -> None:
    assert len(HEIGHT) == sum(map(len, LAYERS))


CAUGHT = {
    "plain": "import tokenstore.manager",
    "with another name": "import tokenstore.manager as m",
    "from": "from tokenstore.manager import TokenManager",
    "from the package": "from tokenstore import manager",
    "by its public name": "from tokenstore import TokenManager",
    "the package": "import tokenstore",
    "for types": "if TYPE_CHECKING:\n    from tokenstore.manager import TokenManager",
    "in a function": "def f():\n    from tokenstore import manager",
    "in a method": "class C:\n    def f(self):\n        import tokenstore.manager",
    "in a try": "try:\n    import tokenstore.manager\nexcept ImportError:\n    pass",
    "the same layer": "from tokenstore.database import Database",
    "itself": "from tokenstore.oauth import x",
    "a module without a place": "import tokenstore.nowhere",
    "a package above": "from tokenstore.cli import output",
    "relative": "from . import errors",
}


@pytest.mark.parametrize("source", CAUGHT.values(), ids=CAUGHT)
def test_an_import_that_goes_up_is_found_wherever_it_stands(source: str) -> None:
    assert upward(source, "oauth")


@pytest.mark.parametrize(
    "source",
    [
        "import json\nfrom sqlalchemy import select",
        "from tokenstore import __version__",
        "from tokenstore.errors import TokenStoreError",
        "from tokenstore import errors, exchange",
        "import tokenstore.tokens",
        "import tokenstores",
    ],
)
def test_an_import_that_goes_down_or_elsewhere_is_allowed(source: str) -> None:
    assert upward(source, "oauth") == []


def test_the_version_is_all_that_anybody_may_import_from_the_package() -> None:
    assert upward("from tokenstore import __version__, Provider", "oauth") == ["__init__"]


def test_a_module_without_a_place_is_found() -> None:
    with pytest.raises(AssertionError, match="newcomer has no place"):
        upward("", "newcomer")

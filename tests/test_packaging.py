from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tokenstore
from tests.helpers.stores import ROOT, SOON, copy_checkout, names
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

SITE = Path(sysconfig.get_path("purelib"))
USE = """
import importlib.metadata, io, json, sys
import tokenstore
from tokenstore import TokenRepository, migrate
from tokenstore.storage.migrations import scripts

migrate.upgrade(sys.argv[1])
with TokenRepository(sys.argv[1]) as repository:
    repository.save("alice", {"access_token": "a"})
    assert repository.load("alice") == {"access_token": "a"}
out = io.StringIO()
migrate.check(sys.argv[1], stdout=io.StringIO())
migrate.current(sys.argv[1], stdout=out)
print(json.dumps({
    "package": tokenstore.__file__,
    "scripts": str(scripts()),
    "current": out.getvalue().split()[0],
    "version": tokenstore.__version__,
    "metadata": importlib.metadata.version("tokenstore"),
}))
"""


def run(*arguments: object, cwd: Path, **variables: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        list(map(str, arguments)),
        check=False,
        capture_output=True,
        text=True,
        timeout=SOON,
        cwd=cwd,
        env={**inherited, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Build with the hatchling that is installed: no network is needed."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target, cwd=source)
    [built] = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with what gathers in one, none of which is to be shipped."""
    checkout = copy_checkout(tmp_path_factory.mktemp("source"))
    for directory in ("tokenstore", "migrations", "migrations/versions"):
        (checkout / directory / "__pycache__").mkdir()
        (checkout / directory / "__pycache__" / "stray.cpython-311.pyc").write_bytes(b"")
        (checkout / directory / "stray.db").write_bytes(b"secret")
    (checkout / "tokens.db").write_bytes(b"secret")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "stray.py").write_text("")
    return checkout


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # since Python 3.11.4
            archive.extractall(directory, filter="data")
        else:
            archive.extractall(directory)
    [source] = directory.iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_from_sdist(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel-from-sdist"))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh environment that sees our dependencies, and no tokenstore."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(f"{SITE}\n")
    return python


def install(python: Path, *what: object) -> None:
    """Install without a network: the dependencies and hatchling are there."""
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=Path("/"))


def use(python: Path, elsewhere: Path, **variables: str) -> dict[str, str]:
    import json

    elsewhere.mkdir()
    database = elsewhere / "tokens.db"
    printed = run(python, "-P", "-W", "error", "-c", USE, database, cwd=elsewhere, **variables)
    found: dict[str, str] = json.loads(printed)
    assert found["current"] == REVISION
    return found


def expected_files() -> set[str]:
    """Return what a wheel has to hold of the checkout, by its names in there."""
    found = set()
    for directory, prefix in (
        ("tokenstore", "tokenstore"),
        ("migrations", "tokenstore/migrations"),
    ):
        for path in (ROOT / directory).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{prefix}/{path.relative_to(ROOT / directory)}")
    return found


@pytest.mark.parametrize("which", ["wheel", "wheel_from_sdist"])
def test_a_wheel_holds_the_package_and_its_migrations_and_nothing_else(
    which: str, request: pytest.FixtureRequest
) -> None:
    with zipfile.ZipFile(request.getfixturevalue(which)) as archive:
        found = set(archive.namelist())

    info = f"tokenstore-{tokenstore.__version__}.dist-info"
    described = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert found == expected_files() | {f"{info}/{name}" for name in described}


def test_a_wheel_holds_py_typed_and_every_migration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())

    assert "tokenstore/py.typed" in found
    assert {"tokenstore/migrations/env.py", "tokenstore/migrations/script.py.mako"} <= found
    versions = [path.name for path in (ROOT / "migrations" / "versions").glob("*.py")]
    assert versions
    assert {f"tokenstore/migrations/versions/{name}" for name in versions} <= found


def test_an_sdist_holds_what_a_checkout_does_and_nothing_stray(unpacked: Path) -> None:
    found = names(unpacked)

    assert found >= {"alembic.ini", "pyproject.toml", "README.md", "LICENSE", "migrations/env.py"}
    assert not [name for name in found if "stray" in name or name.endswith(".db")]


def test_the_metadata_says_what_the_code_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        described = email.message_from_bytes(archive.read(name))

    assert described["Version"] == tokenstore.__version__
    assert described["Requires-Python"] == ">=3.11"
    needed = {line.split(";")[0].split(">")[0] for line in described.get_all("Requires-Dist", [])}
    assert needed >= {"sqlalchemy", "alembic", "requests", "filelock", "platformdirs"}


def test_the_installed_version_is_that_of_the_code() -> None:
    assert metadata.version("tokenstore") == tokenstore.__version__


@pytest.mark.parametrize("which", ["wheel", "sdist"])
def test_an_installed_package_finds_its_migrations(
    which: str, python: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    install(python, request.getfixturevalue(which))

    found = use(python, tmp_path / "elsewhere")

    package = Path(found["package"]).parent
    assert package.is_relative_to(tmp_path / "venv")
    assert Path(found["scripts"]) == package / "migrations"
    assert found["version"] == found["metadata"] == tokenstore.__version__
    assert (python.parent / "tokenstore").is_file()


def test_an_editable_install_finds_the_migrations_of_the_checkout(
    python: Path, tmp_path: Path
) -> None:
    checkout = copy_checkout(tmp_path)
    install(python, "--editable", checkout)

    found = use(python, tmp_path / "elsewhere")

    assert Path(found["package"]).parent == checkout / "tokenstore"
    assert Path(found["scripts"]) == checkout / "migrations"
    assert found["version"] == found["metadata"]


def bare_checkout(directory: Path, _: Callable[[str], Path]) -> tuple[Path, Path]:
    checkout = copy_checkout(directory)
    return checkout, checkout / "migrations"


def unpacked_sdist(_: Path, get: Callable[[str], Path]) -> tuple[Path, Path]:
    return get("unpacked"), get("unpacked") / "migrations"


def target_directory(directory: Path, get: Callable[[str], Path]) -> tuple[Path, Path]:
    with zipfile.ZipFile(get("wheel")) as archive:
        archive.extractall(directory / "target")
    return directory / "target", directory / "target" / "tokenstore" / "migrations"


@pytest.mark.parametrize(
    "place", [bare_checkout, unpacked_sdist, target_directory], ids=lambda place: place.__name__
)
def test_a_package_that_is_only_on_the_path_finds_its_migrations(
    place: Callable[[Path, Callable[[str], Path]], tuple[Path, Path]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    root, scripts = place(tmp_path, request.getfixturevalue)

    found = use(Path(sys.executable), tmp_path / "elsewhere", PYTHONPATH=str(root))

    assert Path(found["package"]).parent == root / "tokenstore"
    assert Path(found["scripts"]) == scripts


def test_alembic_works_in_an_unpacked_sdist(unpacked: Path, tmp_path: Path) -> None:
    x = ("-x", f"database={tmp_path / 'tokens.db'}")

    run(sys.executable, "-m", "alembic", *x, "upgrade", "head", cwd=unpacked)

    current = run(sys.executable, "-m", "alembic", *x, "current", cwd=unpacked)
    assert current == f"{REVISION} (head)\n"


def test_migrations_of_another_project_are_never_run(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "site" / "tokenstore" / "migrations").rename(tmp_path / "site" / "migrations")
    (tmp_path / "site" / "migrations" / "env.py").write_text("print('somebody else')")
    code = """
import sys
from tokenstore import StorageError, migrate
try:
    migrate.upgrade(sys.argv[1])
except StorageError as error:
    print("refused", "reinstall" in str(error))
"""

    printed = run(
        *(sys.executable, "-P", "-c", code, tmp_path / "tokens.db"),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )

    assert printed == "refused True\n"

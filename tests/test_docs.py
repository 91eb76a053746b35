from __future__ import annotations

import ast
import json
import logging
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

import tokenstore
from tests.helpers.stores import ROOT, SOON
from tokenstore import TokenManager, TokenRepository, errors, testing
from tokenstore.cli.app import app, run
from tokenstore.doctor import examine
from tokenstore.jsonfiles import import_accounts
from tokenstore.oauth.providers_toml import _KEYS, provider_from_table
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = ROOT / "docs"
ONE_PROGRAM = "<!-- one program -->"  # the blocks of such a page run in sequence
SERVER = "postgresql+psycopg://myapp@db.example.com/myapp"  # the server's URL in the pages


@dataclass(frozen=True)
class Page:
    """A page's source, with the files that it includes."""

    path: Path
    text: str = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Page:
        text = path.read_text("utf-8")
        included = re.sub(r'--8<-- "(.+?)"', lambda m: (ROOT / m[1]).read_text("utf-8"), text)
        return cls(path, included)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def blocks(self) -> list[tuple[str, str]]:
        return re.findall(r"^```(\w+)\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL)

    @property
    def prose(self) -> str:
        return re.sub(r"^```.*?^```", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @property
    def anchors(self) -> set[str]:
        return {slug(title) for title in re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)}

    @property
    def programs(self) -> list[list[tuple[str, str | None]]]:
        """Return the programs, each a list of blocks with their expected output, or None.

        A text block that directly follows a Python block is its output.
        """
        found = re.findall(
            r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?",
            self.text,
            re.MULTILINE | re.DOTALL,
        )
        blocks = [(code, printed or None) for code, printed in found]
        return [blocks] if ONE_PROGRAM in self.text else [[block] for block in blocks]


def slug(title: str) -> str:
    """Return the anchor that Python-Markdown creates for a heading."""
    title = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)
    text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def cells(page: str, heading: str) -> list[str]:
    """Return the first cell of every row of the table below a heading."""
    _, _, rest = Page.read(DOCS / page).text.partition(f"## {heading}\n")
    rows = re.findall(r"^\| (.+?) \|", rest.partition("\n## ")[0], re.MULTILINE)
    return [row for row in rows[1:] if row != "---"]


PAGES = [Page.read(path) for path in sorted(DOCS.rglob("*.md"))]
PROGRAMS = [
    pytest.param(page, program, id=f"{page.name}-{number}")
    for page in PAGES
    for number, program in enumerate(page.programs)
]
LINKS = [
    (page, target)
    for page in [*PAGES, Page.read(ROOT / "README.md")]
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose)
    if not target.startswith(("http:", "https:"))
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory without configuration; restore the log handlers."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("TOKENSTORE_", "GOOGLE_", "MS_")):
            monkeypatch.delenv(name)
    logger = logging.getLogger("tokenstore")
    before = logger.handlers[:]
    yield tmp_path
    logger.handlers[:] = before


# -- programs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "blocks"), PROGRAMS)
def test_every_program_runs_and_prints_the_documented_output(
    page: Page,
    blocks: list[tuple[str, str | None]],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if any(SERVER in code for code, _ in blocks):
        url = request.getfixturevalue("schema")
        blocks = [(code.replace(SERVER, url), expected) for code, expected in blocks]
    if ONE_PROGRAM not in page.text:  # that one starts without an account
        with TokenManager("tokens.db") as manager:
            manager.save_tokens("alice@example.com", {"access_token": "a", "expires_in": 3600})
    names: dict[str, object] = {}

    for code, expected in blocks:
        exec(code, names)
        printed = capsys.readouterr().out
        assert expected in {None, printed}


def test_the_sql_lets_an_application_and_a_worker_do_their_work(postgresql: str) -> None:
    from sqlalchemy import make_url

    from tests.helpers.postgresql import connect

    def as_user(user: str) -> str:
        url = make_url(postgresql).set(username=user, database="myapp")
        if user == "worker":
            url = url.update_query_dict({"owner": "myapp"})
        return url.render_as_string(hide_password=False)

    whole, create, worker, *_ = (
        block
        for language, block in Page.read(DOCS / "how-to/postgresql.md").blocks
        if language == "sql"
    )
    with connect(postgresql) as admin:
        admin.execute("CREATE DATABASE myapp")
    with connect(as_user("postgres")) as admin:
        admin.execute(whole.encode())
        with TokenManager(as_user("myapp")) as manager:
            manager.save_tokens("alice", {"access_token": "a", "refresh_token": "r"})
        admin.execute(worker.encode())
        with TokenRepository(as_user("worker")) as repository:
            record = repository.record("alice")
            assert record is not None
            assert repository.journal.begin(record, provider="test", reason="due", longest=60).id
        assert not [found for found in examine(as_user("worker")) if found.severity == "error"]
        for language, block in Page.read(DOCS / "scale.md").blocks:
            admin.execute(block.encode() if language == "sql" else b"")

        admin.execute("DROP SCHEMA tokenstore CASCADE")
        admin.execute(create.encode())
        with TokenManager(as_user("myapp")) as manager:
            manager.save_tokens("alice", {"access_token": "a"})


def test_programs_are_found_with_what_they_print() -> None:
    page = Page(DOCS / "x.md", "```python\na\n```\n\n```text\nb\n```\n\n```python\nc\n```\n")

    assert page.programs == [[("a\n", "b\n")], [("c\n", None)]]
    assert sum(len(page.programs) for page in PAGES) > 10


# -- commands ---------------------------------------------------------------------------------


def commands_of(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def documented_commands() -> set[str]:
    """Return the command lines in the blocks and the sentences of the pages."""
    line = re.compile(r"\btokenstore [^\n|)>;&#`]+")
    found = set()
    for page in PAGES:
        for language, block in page.blocks:
            if language not in {"python", "sql"}:
                found |= set(line.findall(block))
        for code in re.findall(r"`([^`\n]+)`", page.prose):
            found |= set(line.findall(code))
    return found


def wrong_with(words: list[str], command: click.Command) -> str | None:
    """Return a description of the first unknown word, or None."""
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if word == "--":
            return None
        if word.startswith("-") and not word[1:].isdigit():  # -1 is a revision
            option = next((p for p in command.params if name in p.opts), None)
            if option is None and name not in {"-h", "--help"}:
                return f"{command.name} has no {name}"
            if isinstance(option, click.Option) and not option.is_flag and not value:
                words.pop(0)
        elif isinstance(command, click.Group):
            commands = commands_of(command)
            if word not in commands:
                return f"there is no {word}"
            return wrong_with(words, commands[word])
    return None


@pytest.mark.parametrize("line", sorted(documented_commands()))
def test_every_command_and_option_exists(line: str) -> None:
    assert wrong_with(shlex.split(line)[1:], app) is None


@pytest.mark.parametrize(
    "line", ["nonsense", "status --nonsense", "db nonsense", "--database x.db status --fix"]
)
def test_an_unknown_command_or_option_is_found(line: str) -> None:
    assert wrong_with(line.split(), app)


def test_command_lines_are_found_wherever_they_stand() -> None:
    found = {shlex.split(line)[1] for line in documented_commands()}

    assert found >= {"import", "token", "refresh", "doctor", "backup", "db", "--database"}


# -- links and names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "target"), LINKS, ids=[f"{page.name}-{target}" for page, target in LINKS]
)
def test_every_link_and_anchor_resolves(page: Page, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (page.path.parent / file).resolve() if file else page.path

    assert path.exists()
    if anchor:
        assert anchor in Page.read(path).anchors


def test_links_are_found() -> None:
    assert len(LINKS) > 30
    assert [target for _, target in LINKS if "#" in target]


def test_the_anchor_of_a_heading_is_that_of_the_site() -> None:
    assert slug("Forks: gunicorn, *uwsgi*, `x_y`") == "forks-gunicorn-uwsgi-x_y"


def referred_to() -> list[str]:
    text = Page.read(DOCS / "reference" / "python.md").text
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", referred_to())
def test_every_name_of_the_reference_exists(name: str) -> None:
    assert pkgutil.resolve_name(name).__doc__


def test_every_public_name_is_in_the_reference() -> None:
    helpers = {n for n, v in vars(testing).items() if isinstance(v, type)}
    public = {f"tokenstore.{name}" for name in tokenstore.__all__}

    assert public | {f"tokenstore.testing.{name}" for name in helpers} <= set(referred_to())


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]

    listed = re.findall(r"[\w/-]+\.md", navigation)
    assert sorted(listed) == [str(page.path.relative_to(DOCS)) for page in PAGES]


# -- generated parts and facts -----------------------------------------------------


def test_the_reference_has_the_help_of_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.setenv("COLUMNS", "80")
    import generate

    markdown = generate.on_page_markdown(Page.read(DOCS / "reference" / "command.md").text)

    block = re.compile(r"^#+ (tokenstore[^\n]*)\n\n```text\n(.*?)```", re.MULTILINE | re.DOTALL)
    texts = dict(block.findall(markdown))
    assert set(texts) >= {f"tokenstore {name}" for name in commands_of(app)}
    assert "tokenstore db upgrade" in texts
    for line, text in texts.items():
        run([*line.split()[1:], "--help"])
        assert text == capsys.readouterr().out
        assert line == "tokenstore" or re.search(r"^  Examples?[:,]", text, re.MULTILINE), line


def test_every_key_of_a_provider_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import generate

    markdown = generate.on_page_markdown(Page.read(DOCS / "reference" / "providers.md").text)

    rows = re.findall(r"^\| `(\w+)` \| (.+) \| .* \| (.+) \|$", markdown, re.MULTILINE)
    assert {key for key, _, _ in rows} == set(_KEYS)
    assert "| `body_format` | a string | `form` | `form`, as RFC 6749 requires" in markdown


def test_the_error_tree_in_the_reference_is_that_of_the_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import generate

    markdown = generate.on_page_markdown(Page.read(DOCS / "reference" / "python.md").text)

    [tree] = re.findall(r"```text\n(.*?)```", markdown, re.DOTALL)
    parents: list[str] = []
    drawn = {}
    for line in tree.splitlines():
        name = re.search(r"\w+", line)
        assert name is not None
        depth = name.start() // len("├── ")
        parents[depth:] = [name[0]]
        drawn[name[0]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.TokenStoreError)
    }
    assert "├── InvalidTokenError (ValueError)\n" in tree
    assert "└── TokenRefreshError\n    ├── ProviderConfigurationError\n" in tree


def test_a_page_that_loads_something_from_another_site_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    import generate

    class At:
        src_uri = "x.md"
        file: Any = None

    At.file = At
    generate.on_post_page('<a href="https://a.example">a</a><img src="x.svg">', page=At)
    assert not caplog.records
    generate.on_post_page('<script async src="https://cdn.example/x.js">', page=At)
    assert len(caplog.records) == 1


def toml_blocks() -> list[str]:
    return [block for page in PAGES for language, block in page.blocks if language == "toml"]


@pytest.mark.parametrize("text", toml_blocks(), ids=range(len(toml_blocks())))
def test_every_providers_file_is_understood(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_CLIENT_SECRET", "x")
    monkeypatch.setenv("GOOGLE_CLIENT_ID", "x")
    monkeypatch.setenv("GOOGLE_CLIENT_SECRET", "x")
    Path("providers.toml").write_text(text, "utf-8")
    manager = TokenManager("tokens.db")

    for name in tomllib.loads(text):
        manager._providers.get(name)


def test_every_setting_for_a_nonstandard_provider_is_understood() -> None:
    _, _, rest = Page.read(DOCS / "how-to" / "providers.md").text.partition(
        "nonstandard provider\n"
    )
    settings = re.findall(r"`([^`\n]+ = [^`\n]+)`", rest.partition("\n## ")[0])

    assert len(settings) > 8
    for line in settings:
        given = tomllib.loads(f'client_id = "x"\nissuer = "https://a.example"\n{line}')
        given.setdefault("client_secret", "x")
        if given.get("token_endpoint_auth_method") == "none":
            del given["client_secret"]
        provider_from_table("acme", given, None, base=None).require_usable()


def test_every_check_of_the_doctor_is_explained() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tokenstore/doctor").glob("*.py"))
    checks = set(re.findall(r'(?:\bFinding|\bok)\(\s*"([a-z ]+)"', code))

    assert "shared tokens" in checks
    assert {cell.strip("`") for cell in cells("operations.md", "Findings of the doctor")} == checks


@pytest.mark.parametrize("message", cells("operations.md", "Messages"))
def test_every_message_that_is_explained_is_one_of_the_program(message: str) -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tokenstore").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # join string literals over several lines

    assert message in code


def shape(value: Any) -> Any:
    """Return the fields of a JSON value, without their contents."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [shape(value[0])]
    return None


def test_the_json_of_every_command_has_the_fields_that_the_page_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("old").mkdir()
    shown = re.findall(
        r"^## (\w+)\n\n```json\n(.*?)^```",
        Page.read(DOCS / "reference" / "json.md").text,
        re.MULTILINE | re.DOTALL,
    )
    lines = {
        "import": "import --provider test old",
        "refresh": "refresh alice",
        "status": "status",
        "token": "token alice",
        "history": "history",
        "providers": "providers",
        "export": "export new",
        "backup": "backup copy.db",
        "restore": "restore copy.db",
        "doctor": "doctor",
        "logout": "logout --keep-account alice",
        "delete": "delete alice",
    }
    found = {}
    with AuthorizationServer(client_secret=None) as server:
        Path("providers.toml").write_text(
            f'[test]\ntoken_endpoint = "{server.token_endpoint}"\nclient_id = "tokenstore"\n'
        )
        Path("old/alice.json").write_text(json.dumps(server.sign_in("alice")))
        for name, line in lines.items():
            run(["--database", "tokens.db", *line.split(), "--json"])
            found[name] = shape(json.loads(capsys.readouterr().out))
    found["login"] = found["logout"]  # it requires a browser; logout prints the same fields

    assert found == {name: shape(json.loads(block)) for name, block in shown}


def test_every_command_that_prints_json_is_on_the_page() -> None:
    titles = Page.read(DOCS / "reference" / "json.md").anchors - {slug("JSON output")}

    assert titles == {
        name
        for name, command in commands_of(app).items()
        if any("--json" in parameter.opts for parameter in command.params)
    }


def test_the_file_that_the_reference_shows_can_be_imported() -> None:
    [block] = [b for lang, b in Page.read(DOCS / "reference/files.md").blocks if lang == "json"]
    Path("file.json").write_text(block, "utf-8")

    with TokenRepository("tokens.db") as repository:
        [result] = import_accounts(repository, "file.json")
        stored = repository.load("alice@example.com") or {}

    assert (result.outcome, result.reason) == ("imported", None)
    assert stored["access_token"] == "ya29.a0…"
    assert "tokenstore" not in stored


# -- the checklists of the standards -----------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A row of the checklists: a point of a standard, how it is satisfied, and the tests."""

    name: str
    how: str
    tests: str

    @property
    def section(self) -> tuple[str, str]:
        standard, _, rest = self.name.partition(", ")
        return standard, rest.split()[0]

    @property
    def listed(self) -> list[tuple[str, str]]:
        return re.findall(r"`(\w+(?:/\w+)*)::(\w+)`", self.tests)


def points() -> list[Point]:
    text = Page.read(DOCS / "security.md").text
    _, _, table = text.partition("## Checklists of the standards\n")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return [Point(*row) for row in rows[2:]]


SECTIONS = {
    "RFC 8252": [f"8.{number}" for number in range(1, 13)],
    "RFC 9700": [
        *("2.1", "2.1.1", "2.1.2", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6"),
        *("4.1", "4.2", "4.3", "4.4.2.1", "4.4.2.2"),
        *(f"4.{number}" for number in range(5, 18)),
    ],
    "RFC 9207": ["2", "2.3", "2.4"],
    "RFC 7636": ["4.1", "4.2", "4.5", "7.1", "7.2", "7.3", "7.4", "7.5"],
    "RFC 8628": [f"5.{number}" for number in range(1, 8)],
    "OpenID Connect Core": ["3.1.3.7", "12.2"],
}


@pytest.mark.parametrize("point", points(), ids=lambda point: point.name)
def test_every_point_of_a_standard_names_tests_that_exist(point: Point) -> None:
    for module, test in point.listed:
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text("utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert point.listed or point.how.startswith(("Not applicable: ", "Not supported: "))
    assert re.sub(r"`[^`]*`", "", point.tests).strip() in {"", "none"}  # no other text


def test_the_checklists_have_every_section() -> None:
    found: dict[str, list[str]] = {}
    for point in points():
        standard, section = point.section
        numbers = found.setdefault(standard, [])
        numbers += [section] * (section not in numbers)
    assert found == SECTIONS

    names = " ".join(point.name for point in points())
    items = re.findall(r"3\.1\.3\.7 \(([\d, ]+)\)", names)
    assert re.findall(r"\d+", ", ".join(items)) == [str(n) for n in range(1, 14)]


# -- pictures ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_status_picture_is_the_output_of_the_program(elsewhere: Path) -> None:
    made = elsewhere / "status.svg"
    environment = {**os.environ, "TZ": "PST8PDT", "NO_COLOR": "1", "COLUMNS": "40"}

    subprocess.run(
        [sys.executable, DOCS / "screens.py", made], check=True, timeout=SOON, env=environment
    )

    assert made.read_text("utf-8") == (DOCS / "status.svg").read_text("utf-8"), (
        "run: python docs/screens.py"
    )


@pytest.mark.parametrize("picture", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.name)
def test_a_picture_has_no_script_and_fetches_nothing(picture: Path) -> None:
    text = re.sub(r"<!--.*?-->", "", picture.read_text("utf-8"), flags=re.DOTALL)

    assert "<script" not in text
    assert set(re.findall(r"https?://[^\"'\s)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)|href=\"(?!#)", text)

"""Standard streams that are closed, full, or without a reader, or that cannot encode a name."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command import COMMAND, Command
from tests.helpers.refreshes import SOON, until
from tests.helpers.requirements import needs_full_device
from tokenstore import TokenRepository
from tokenstore.cli import streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.refreshes import World

FULL = f"tokenstore: cannot write the output: {os.strerror(errno.ENOSPC)}\n"
CLOSED = "tokenstore: cannot write the output: it is closed\n"
ALL_CLOSED = "<&- >&- 2>&-"


class Redirected:
    """The command in processes of their own, whose streams a shell redirects."""

    def __init__(self, world: World, command: Command) -> None:
        self._directory = world.path.parent
        self._environment = {**os.environ, **command.environment, "PYTHONUNBUFFERED": ""}
        self._environment["TOKENSTORE_DATABASE"] = str(world.path)
        read, self.without_reader = os.pipe()
        os.close(read)

    def start(
        self, arguments: str, redirection: str = "", *, stdout: int = subprocess.PIPE, **more: Any
    ) -> subprocess.Popen[str]:
        """Start a command; *redirection* is that of a shell."""
        return subprocess.Popen(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *arguments.split()],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def __call__(
        self, arguments: str, redirection: str = "", *, given: str = "", **more: Any
    ) -> tuple[int, str, str]:
        """Run a command; return its exit code and what it printed to stdout and stderr."""
        with self.start(arguments, redirection, **more) as process:
            out, err = process.communicate(given, timeout=SOON)
        return process.returncode, out or "", err


@pytest.fixture
def redirected(world: World, command: Command) -> Iterator[Redirected]:
    redirected = Redirected(world, command)
    yield redirected
    os.close(redirected.without_reader)


@needs_full_device
@pytest.mark.parametrize(
    "arguments",
    [
        "status",
        "status --json",
        "token alice",
        "doctor",
        "db check",
        "--help",
        "--version",
        "completion bash",
    ],
)
def test_an_answer_that_cannot_be_written_is_exit_code_1(
    world: World, redirected: Redirected, arguments: str
) -> None:
    world.sign_in("alice")
    world.manager().refresh_token("alice")  # so that there is a history
    running = [
        (redirected.start(arguments, ">/dev/full"), FULL),
        (redirected.start(arguments, ">&-"), CLOSED),
        (redirected.start(arguments, stdout=redirected.without_reader), ""),
        (redirected.start(arguments, ALL_CLOSED), ""),
    ]

    for process, message in running:
        with process:
            _, err = process.communicate(timeout=SOON)
        assert (process.returncode, err) == (1, message)


@needs_full_device
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-"])
def test_an_answer_that_is_written_is_a_success(
    world: World, redirected: Redirected, redirection: str
) -> None:
    world.sign_in("alice")

    code, out, _ = redirected("refresh --all", redirection)

    assert (code, out) == (0, "refreshed\talice\n")


LOST = {"full": ">/dev/full", "closed": ">&-", "stderr": "2>&-", "all": ALL_CLOSED, "reader": ""}


@needs_full_device
@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("arguments", ["refresh --all --json", "refresh alice bob"])
def test_a_refresh_needs_no_streams(
    world: World, redirected: Redirected, arguments: str, lost: str
) -> None:
    for name in ("alice", "bob"):
        world.sign_in(name)
    stdout = redirected.without_reader if lost == "reader" else subprocess.PIPE

    code, _, err = redirected(arguments, LOST[lost], stdout=stdout)

    assert world.outcomes("alice") == world.outcomes("bob") == ["refreshed"]
    assert code == (0 if lost == "stderr" else 1)
    assert err == {"full": FULL, "closed": CLOSED}.get(lost, "")


def test_a_worker_needs_no_streams(world: World, redirected: Redirected) -> None:
    hold = world.hold()
    for name in ("alice", "bob"):
        world.sign_in(name)
    worker = redirected.start("refresh --all --every 1h --jobs 1", ALL_CLOSED)
    with worker, ExitStack() as stack:
        stack.callback(worker.kill)  # an assertion that fails must not wait for its end
        assert hold.arrived.wait(SOON)
        if sys.platform == "linux":  # no file has the number of a stream
            targets = [Path(f"/proc/{worker.pid}/fd/{number}") for number in range(3)]
            assert [str(stream.readlink()) for stream in targets] == [os.devnull] * 3
        hold.release.set()
        until(lambda: world.outcomes("alice") == world.outcomes("bob") == ["refreshed"])
        worker.terminate()
        assert worker.wait(SOON) == 1

    assert world.posts == 2


def test_an_import_and_an_export_need_no_streams(world: World, redirected: Redirected) -> None:
    tokens = '{"access_token": "a"}'

    assert redirected("import - --as alice", ">&- 2>&-", given=tokens)[0] == 1
    assert redirected("export files", ALL_CLOSED)[0] == 1
    assert redirected("backup copy.db", ALL_CLOSED)[0] == 1

    files = world.path.parent / "files"
    assert [path.name for path in files.iterdir()] == ["alice.json"]
    with TokenRepository(world.path.parent / "copy.db") as repository:
        assert [account.name for account in repository.accounts()] == ["alice"]


def test_an_import_from_a_closed_stream_is_wrong_usage(redirected: Redirected) -> None:
    code, out, err = redirected("import -", "<&-")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "standard input is closed" in err


def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while os.write(write, b"x" * 4096):
            pass
    descriptor = streams._Descriptor(write, lambda error: pytest.fail(str(error)))
    written: list[int] = []
    thread = threading.Thread(target=lambda: written.append(descriptor.write(b"end")), daemon=True)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()

    received = b""
    while not received.endswith(b"end"):
        received += os.read(read, 1 << 16)

    thread.join(SOON)
    assert written == [3]
    os.close(read)
    os.close(write)


# -- names that the locale cannot write ---------------------------------------------------------

LOCALES = {
    "POSIX": {"LC_ALL": "POSIX"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
}
NAME = "zoë łódź 😀"
PROGRAM = """\
import sys
from tokenstore.cli import streams
streams.prepare()
from tokenstore.cli.app import run
name = sys.argv[1]
for arguments in (
    ["import", "old"], ["status", name], ["status", "--json"], ["history", name], ["export", "new"],
    ["status", "n" + name], ["delete", name],
):
    print(f"\\x1e{run(arguments)}\\x1e", end="", flush=True)
"""


@pytest.mark.parametrize("settings", LOCALES.values(), ids=LOCALES)
def test_no_locale_keeps_a_command_from_its_work(tmp_path: Path, settings: dict[str, str]) -> None:
    """The name of an account may be any text, and that of a file any bytes."""
    old = os.fsencode(tmp_path / "old")
    os.mkdir(old)  # noqa: PTH102
    for file in (f"{NAME}.json".encode(), b"not \xff UTF-8.json"):
        with open(os.path.join(old, file), "w", encoding="ascii") as opened:  # noqa: PTH118, PTH123
            opened.write('{"access_token": "a", "refresh_token": "r"}')

    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, NAME],
        cwd=tmp_path,
        env={**os.environ, "TOKENSTORE_DATABASE": str(tmp_path / "tökens.db"), **settings},
        capture_output=True,
        check=False,
        timeout=SOON,
    )

    encoding = settings.get("PYTHONIOENCODING", "utf-8")
    outs, err = ran.stdout.decode(encoding).split("\x1e"), ran.stderr.decode(encoding)
    assert outs[1::2] == ["1", "0", "0", "0", "0", "5", "0"], err
    assert "this is a bug" not in err
    imported, shown, as_json, _, exported, missing, deleted, _ = outs[::2]
    escaped = settings in (LOCALES["ASCII"], LOCALES["ASCII output"])
    name = r"zo\xeb \u0142\xf3d\u017a \U0001f600" if escaped else NAME
    if settings == LOCALES["Latin-1 output"]:
        name = r"zoë \u0142ód\u017a \U0001f600"
    assert f"imported\t{name}\t" in imported
    assert r"not \udcff UTF-8.json" in imported
    assert shown.startswith(f"{name}\t")
    assert json.loads(as_json)["accounts"][0]["name"] == NAME
    assert exported.startswith(f"exported\t{name}\t")
    assert missing == ""
    assert deleted == f"deleted\t{name}\n"

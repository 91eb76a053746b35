"""What the tests of secrets share: secrets with CANARY in them, and an eye on all that is shown."""

from __future__ import annotations

import base64
import logging
import pickle
import sqlite3
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import pytest

from tests.helpers.refreshes import Told
from tokenstore import TokenStoreError
from tokenstore.testing import Answer, Drip, Drop, Step, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers.refreshes import World

SECRET = "CANARY secret/é"
OLD: dict[Any, Any] = {
    "access_token": "CANARY-access-1",
    "refresh_token": "1//CANARY+refresh-1",
    "id_token": "CANARY-id-1",
    "expires_in": -1,
}
NEW = {
    "access_token": "CANARY-access-2",
    "refresh_token": "1//CANARY+refresh-2",
    "id_token": "CANARY-id-2",
    "expires_in": 3600,
}
BASIC = base64.b64encode(f"tokenstore:{quote_plus(SECRET)}".encode()).decode()


def echo(refresh_token: str = OLD["refresh_token"]) -> str:
    """Return what a provider may repeat of a request with *refresh_token*."""
    return f"{refresh_token} {SECRET} {quote_plus(refresh_token)} {quote_plus(SECRET)}"


def steps(said: str) -> dict[str, Step]:
    """Return the ways in which a refresh can fail; where a provider has words, they are *said*."""
    return {
        "invalid_grant": Answer(400, {"error": "invalid_grant", "error_description": said}),
        "unknown error": Answer(400, {"error": said}),
        "nested error": Answer(400, {"error": {"code": said, "message": said}}),
        "HTML": Answer(400, f"<html>{said}</html>"),
        "server error": Answer(500, {"error": "server_error", "error_description": said}),
        "to wait": Answer(429, {"error": said}, {"Retry-After": "60"}),
        "no token": Answer(200, {"access_token": "", "refresh_token": NEW["refresh_token"]}),
        "token that is none": Answer(200, {**NEW, "access_token": "CANARY\nCANARY"}),
        "redirect": Answer.redirect("https://CANARY:CANARY@other.example/?refresh_token=CANARY"),
        "no answer": Drop(spent=False),
        "cut short": Truncate(),
        "dripping": Drip(0.01),
    }


STEPS = steps(echo())
LOGGERS = ("alembic", "filelock", "sqlalchemy.engine", "sqlalchemy.pool", "urllib3")
TESTS = Path(__file__).parents[1]


class Watch:
    """Collects whatever a person or a log may get to see.

    Attributes:
        secrets: What must not be in it.
        seen: All of it.
    """

    def __init__(self) -> None:
        self.secrets = {"CANARY", BASIC}
        self.seen: list[str] = []

    def show(self, *things: object) -> None:
        for thing in things:
            self.seen += [str(thing), repr(thing)]

    def show_error(self, error: BaseException) -> None:
        """Show an error, those that it came from, the variables on its way, and its pickle."""
        for cause in chain(error):
            attributes = {k: v for k, v in vars(cause).items() if k != "tokens"}
            self.show(cause, cause.args, attributes)
            self.seen += variables(cause)
            # An error of ours has to have a pickle.
            with suppress(*([] if isinstance(cause, TokenStoreError) else [Exception])):
                self.seen.append(pickle.dumps(cause).decode("latin-1"))
        self.seen += traceback.format_exception(error)

    def catch(self, function: Callable[..., object], *arguments: Any, **more: Any) -> Any:
        """Call something that fails, show how, and return the error."""
        with pytest.raises(TokenStoreError) as caught:
            function(*arguments, **more)
        self.show_error(caught.value)
        return caught.value

    def finish(self, told: Told) -> None:
        """Look for secrets in all that was seen and logged."""
        for record in told.records:
            self.seen += [record.getMessage(), repr(vars(record))]
            if record.exc_info and record.exc_info[1]:
                self.show_error(record.exc_info[1])
        assert len(self.seen) > 10
        shown = [text for text in self.seen if any(s in text for s in self.secrets)]
        assert not shown, "\n".join(shown)


@contextmanager
def watching(world: World, capfd: pytest.CaptureFixture[str]) -> Iterator[Watch]:
    """Watch a test: all that it prints, every logger at DEBUG, the root and the libraries' own."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    watch = Watch()
    with Told("") as told, Told("tokenstore"):
        yield watch
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    with suppress(sqlite3.Error):  # some have no such table
        watch.show(*(world.sql("SELECT * FROM refreshes") if world.path.is_file() else ()))
    watch.seen += capfd.readouterr()
    watch.secrets |= issued(world)
    watch.finish(told)


def issued(world: World) -> set[str]:
    """Return every token that the server has ever issued."""
    tokens = world.server._tokens
    return {*tokens.access_tokens, *tokens.refresh_tokens}


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it came from, whether or not a traceback would show that."""
    pending: list[BaseException | None] = [error]
    known: list[BaseException] = []
    while pending:
        cause = pending.pop()
        if cause is not None and cause not in known:
            known.append(cause)
            yield cause
            pending += [cause.__cause__, cause.__context__]


def variables(error: BaseException) -> Iterator[str]:
    """Yield the variables in a traceback, as error reporters send them along, not the tests' own.

    Those of the libraries that we call are as much ours to hide.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if TESTS not in Path(frame.f_code.co_filename).parents:
            yield f"{frame.f_code.co_qualname}: {frame.f_locals!r}"

from __future__ import annotations

import base64
import imaplib
import re
import smtplib
import threading
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON
from tokenstore import InvalidTokenError
from tokenstore.integrations.mail import xoauth2

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = b"user=alice@example.com\x01auth=Bearer ya29.good\x01\x01"
REASON = b'{"status":"401","schemes":"bearer"}'


class Mail(ThreadingTCPServer):
    """A mail server that accepts the response `GOOD`.

    Attributes:
        answers: The clients' responses, base64-decoded.
    """

    daemon_threads = True

    def __init__(self, handler: type[StreamRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.answers: list[bytes] = []

    def check(self, answer: bytes) -> bool:
        self.answers.append(base64.b64decode(answer.strip(), validate=True))
        return self.answers[-1] == GOOD


class Imap(StreamRequestHandler):
    server: Mail

    def handle(self) -> None:
        self.wfile.write(b"* OK ready\r\n")
        for line in self.rfile:
            tag, command, *_ = line.split()
            if command == b"CAPABILITY":
                self.wfile.write(b"* CAPABILITY IMAP4rev1 AUTH=XOAUTH2\r\n" + tag + b" OK done\r\n")
            elif command == b"AUTHENTICATE":
                self.wfile.write(tag + self._authenticate())
            else:
                self.wfile.write(b"* BYE\r\n" + tag + b" OK\r\n")

    def _authenticate(self) -> bytes:
        self.wfile.write(b"+ \r\n")
        if self.server.check(self.rfile.readline()):
            return b" OK welcome\r\n"
        self.wfile.write(b"+ " + base64.b64encode(REASON) + b"\r\n")
        self.server.check(self.rfile.readline())
        return b" NO invalid credentials\r\n"


class Smtp(StreamRequestHandler):
    server: Mail

    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        for line in self.rfile:
            if line.startswith(b"EHLO"):
                self.wfile.write(b"250-here\r\n250 AUTH XOAUTH2\r\n")
            elif line.startswith(b"AUTH XOAUTH2 "):
                self.wfile.write(self._authenticate(line.split(b" ")[2]))
            else:
                self.wfile.write(b"221 bye\r\n")

    def _authenticate(self, answer: bytes) -> bytes:
        if self.server.check(answer):
            return b"235 welcome\r\n"
        self.wfile.write(b"334 " + base64.b64encode(REASON) + b"\r\n")
        self.server.check(self.rfile.readline())
        return b"535 invalid credentials\r\n"


@contextmanager
def serving(handler: type[StreamRequestHandler]) -> Iterator[Mail]:
    with Mail(handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def imap(server: Mail) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4("127.0.0.1", server.server_address[1], timeout=SOON) as client:
        yield client


def smtp(server: Mail) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", server.server_address[1], "localhost", timeout=SOON)
    client.ehlo()
    return client


def the_ways_of(document: str | None) -> dict[str, str]:
    """Return the sign-in examples of the docstring, by client."""
    lines = re.findall(r"^ +((\w+)\.auth\w*\(.*\))$", document or "", re.MULTILINE)
    return {client: line for line, client in lines}


WAYS = the_ways_of(xoauth2.__doc__)


def sign_in(client: Any, which: str, token: str) -> None:
    names = {which: client, "xoauth2": xoauth2, "user": "alice@example.com", "token": token}
    eval(WAYS[which], names)


def test_imaplib_signs_in() -> None:
    with serving(Imap) as server, imap(server) as client:
        sign_in(client, "imap", "ya29.good")
        assert client.state == "AUTH"
    assert server.answers == [GOOD]


def test_imaplib_reports_a_refused_token() -> None:
    refusal = pytest.raises(imaplib.IMAP4.error, match="invalid credentials")
    with serving(Imap) as server, imap(server) as client, refusal:
        sign_in(client, "imap", "ya29.bad")
    assert server.answers == [GOOD.replace(b"good", b"bad"), b""]


def test_smtplib_signs_in() -> None:
    with serving(Smtp) as server, smtp(server) as client:
        sign_in(client, "smtp", "ya29.good")
    assert server.answers == [GOOD]


def test_smtplib_reports_a_refused_token() -> None:
    refusal = pytest.raises(smtplib.SMTPAuthenticationError, match="invalid credentials")
    with serving(Smtp) as server, smtp(server) as client, refusal:
        sign_in(client, "smtp", "ya29.bad")
    assert server.answers == [GOOD.replace(b"good", b"bad"), b""]


def test_a_client_can_encode_it_itself() -> None:
    with serving(Smtp) as server, smtp(server) as client:
        answer = base64.b64encode(xoauth2("alice@example.com", "ya29.good")).decode()
        assert client.docmd("AUTH", f"XOAUTH2 {answer}")[0] == 235


def test_a_name_that_is_not_ascii_is_utf_8() -> None:
    assert (
        xoauth2("zoë@exämple.org", "t") == "user=zoë@exämple.org\x01auth=Bearer t\x01\x01".encode()
    )


@pytest.mark.parametrize(
    "bad", ["a\x01auth=Bearer other", "a\r\nb", "a\x00", "a\x7f", "", None, b"a"]
)
@pytest.mark.parametrize("field", ["user", "access_token"])
def test_injection_is_refused_and_not_shown(field: str, bad: Any) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        xoauth2(**{"user": "secret-user", "access_token": "secret-token", field: bad})
    assert caught.value.field == field
    assert not re.search("secret|other", str(caught.value))

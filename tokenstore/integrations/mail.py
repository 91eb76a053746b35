"""Sign in to IMAP and SMTP with an access token: the XOAUTH2 mechanism."""

from __future__ import annotations

import socket
import ssl

from tokenstore.errors import InvalidTokenError
from tokenstore.models.tokens import is_token
from tokenstore.oauth.addresses import is_loopback
from tokenstore.redaction import protect


def xoauth2(user: str, access_token: str, *, connection: object = None) -> bytes:
    """Return the initial client response of XOAUTH2, not base64-encoded.

    imaplib encodes it. It passes the server's error about a refused token to the same function,
    and the reply to that must be empty::

        imap.authenticate("XOAUTH2", lambda said: b"" if said else xoauth2(user, token))

    smtplib encodes it as well, but takes text, and accepts ASCII user names only::

        smtp.auth("XOAUTH2", lambda said=None: "" if said else xoauth2(user, token).decode())

    With ``connection=imap`` or ``connection=smtp`` too, the token is refused on a connection that
    is not encrypted. For any other client: ``base64.b64encode(xoauth2(user, token)).decode()``.

    Args:
        user: The mailbox, usually an e-mail address.
        access_token: A valid access token of the account.
        connection: The client of imaplib or smtplib that sends the response, or its socket. It
            must use TLS (from the start or since ``starttls()``) or be on loopback (RFC 6750
            section 5.3). Without it, that is the caller's duty.

    Raises:
        InvalidTokenError: An argument is not text, is empty, or has a control character, which
            could inject further fields; or the connection is not encrypted.
    """
    for field, value in (("user", user), ("access_token", access_token)):
        if not is_token(value):
            raise InvalidTokenError(
                field, "expected text that is not empty and has no control characters"
            )
    if connection is not None and not _is_protected(getattr(connection, "sock", connection)):
        raise InvalidTokenError(
            "connection",
            "a bearer token requires TLS, except on loopback; use IMAP4_SSL or SMTP_SSL, or call "
            "starttls() first",
        )
    return f"user={user}\x01auth=Bearer {access_token}\x01\x01".encode()


def _is_protected(connection: object) -> bool:
    """Return whether what is sent on a socket is encrypted or stays on this machine."""
    if isinstance(connection, ssl.SSLSocket):
        return True
    if not isinstance(connection, socket.socket):
        return False
    if connection.family == socket.AF_UNIX:
        return True
    try:
        return is_loopback(connection.getpeername()[0])
    except OSError:
        raise InvalidTokenError("connection", "it is not connected; connect it first") from None


protect(__name__)

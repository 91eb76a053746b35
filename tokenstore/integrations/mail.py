"""Sign in to IMAP and SMTP with an access token: the XOAUTH2 mechanism."""

from __future__ import annotations

from tokenstore.errors import InvalidTokenError
from tokenstore.models.tokens import is_token
from tokenstore.redaction import protect


def xoauth2(user: str, access_token: str) -> bytes:
    """Return the initial client response of XOAUTH2, not base64-encoded.

    imaplib encodes it. It passes the server's error about a refused token to the same function,
    and the reply to that must be empty::

        imap.authenticate("XOAUTH2", lambda said: b"" if said else xoauth2(user, token))

    smtplib encodes it as well, but takes text, and accepts ASCII user names only::

        smtp.auth("XOAUTH2", lambda said=None: "" if said else xoauth2(user, token).decode())

    For any other client: ``base64.b64encode(xoauth2(user, token)).decode()``.

    Args:
        user: The mailbox, usually an e-mail address.
        access_token: A valid access token of the account.

    Raises:
        InvalidTokenError: An argument is not text, is empty, or has a control character, which
            could inject further fields.
    """
    for field, value in (("user", user), ("access_token", access_token)):
        if not is_token(value):
            raise InvalidTokenError(
                field, "expected text that is not empty and has no control characters"
            )
    return f"user={user}\x01auth=Bearer {access_token}\x01\x01".encode()


protect(__name__)

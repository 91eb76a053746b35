"""Sign in to IMAP and SMTP with an access token: the mechanism XOAUTH2."""

from __future__ import annotations

from tokenstore.errors import InvalidTokenError
from tokenstore.models.tokens import is_token


def xoauth2(user: str, access_token: str) -> bytes:
    """Return what a mail client answers to the first challenge of XOAUTH2, not yet in base64.

    imaplib encodes it, and passes what the server says of a refused token to the same function,
    which wants an empty answer::

        imap.authenticate("XOAUTH2", lambda said: b"" if said else xoauth2(user, token))

    smtplib encodes it as well, but takes text; a user name that is not ASCII is beyond it::

        smtp.auth("XOAUTH2", lambda said=None: "" if said else xoauth2(user, token).decode())

    For any other client: ``base64.b64encode(xoauth2(user, token)).decode()``.

    Args:
        user: The mailbox, mostly an address.
        access_token: A live access token of the account.

    Raises:
        InvalidTokenError: One of them is no text, is empty, or has a control character, with
            which it could pass for more than it is.
    """
    for field, value in (("user", user), ("access_token", access_token)):
        if not is_token(value):
            raise InvalidTokenError(
                field, "text without control characters is needed, and not an empty one"
            )
    return f"user={user}\x01auth=Bearer {access_token}\x01\x01".encode()

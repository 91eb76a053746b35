"""A strict OAuth 2.0 authorization server on loopback, for tests.

A lenient fake hides bugs, so this server refuses whatever a real provider may refuse: a client must
authenticate with its registered method, a refresh token works once, and all tokens of a sign-in are
revoked when a used refresh token is presented again. Failures are scripted::

    from tokenstore.testing import AuthorizationServer, Drop

    with AuthorizationServer() as server:
        manager = TokenManager(path, providers={"test": server.provider()})
        manager.save_tokens("alice", server.sign_in("alice"), provider="test")
        server.script(Drop(spent=True))  # the next response is lost
        ...
        assert len(server.requests) == 1

The server speaks plain HTTP on 127.0.0.1, or https if it is given a certificate. It keeps all state
in memory and writes no log. It supports the refresh grant, authorization codes with PKCE, the
device grant, client credentials, assertions (RFC 7523) and revocation. A client authenticates with
its secret, a signed assertion or a certificate.
``AuthorizationServer.sign_in`` returns tokens at once; ``AuthorizationServer.visit`` acts as a user
with a browser on the sign-in pages.
"""

from tokenstore.testing.script import (
    Answer,
    Drip,
    Drop,
    Hold,
    Step,
    TokenRequest,
    Transform,
    Truncate,
)
from tokenstore.testing.server import AuthorizationServer

__all__ = [
    "Answer",
    "AuthorizationServer",
    "Drip",
    "Drop",
    "Hold",
    "Step",
    "TokenRequest",
    "Transform",
    "Truncate",
]

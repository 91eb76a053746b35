"""A strict OAuth 2.0 authorization server on loopback, for tests.

A lenient fake hides bugs, so this one refuses whatever a real provider may refuse: it wants each
client to authenticate the way it was registered, gives refresh tokens that work once, and revokes
every token of a sign-in when a spent one comes back. What goes wrong in the field is scripted::

    from tokenstore.testing import AuthorizationServer, Drop

    with AuthorizationServer() as server:
        manager = TokenManager(path, providers={"test": server.provider()})
        manager.save_tokens("alice", server.sign_in("alice"), provider="test")
        server.script(Drop(spent=True))  # the next answer is lost on its way
        ...
        assert len(server.requests) == 1

The server speaks plain HTTP on 127.0.0.1, keeps all state in memory and writes no log. It knows
the refresh grant, authorization codes with PKCE, the device grant and revocation. A sign-in is a
call of ``AuthorizationServer.sign_in``, or goes through the pages, where
``AuthorizationServer.visit`` is the person in front of the browser.
"""

from tokenstore.testing.script import (
    Answer as Answer,
)
from tokenstore.testing.script import (
    Drip as Drip,
)
from tokenstore.testing.script import (
    Drop as Drop,
)
from tokenstore.testing.script import (
    Hold as Hold,
)
from tokenstore.testing.script import (
    Step as Step,
)
from tokenstore.testing.script import (
    TokenRequest as TokenRequest,
)
from tokenstore.testing.script import (
    Transform as Transform,
)
from tokenstore.testing.script import (
    Truncate as Truncate,
)
from tokenstore.testing.server import AuthorizationServer as AuthorizationServer

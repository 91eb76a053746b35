"""Draws docs/status.svg: the output of ``tokenstore status`` for sample accounts.

    python docs/screens.py [FILE]

The picture is the program's real output for a store whose accounts were refreshed at a test server.
The clock is fixed, so that the picture is the same each time; a test draws it again and compares.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_NOW = 1_800_000_000.0
_HOUR, _DAY = 3600.0, 86400.0
_COLUMNS = 116
_PROVIDERS = """\
[google]
token_endpoint = "{endpoint}"
client_id = "tokenstore"
client_secret_env = "SCREENS_SECRET"

[acme]
token_endpoint = "{endpoint}"
client_id = "tokenstore"
client_secret_env = "SCREENS_SECRET"
refresh_token_idle = 2592000
"""


class _Clock:
    """The clock of this process: it returns the time that was last set."""

    now = _NOW

    def __call__(self) -> float:
        return self.now


def main(target: Path) -> None:
    """Write the picture to *target*."""
    time.time = clock = _Clock()  # before the import of tokenstore, which reads it
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "tokens.db"
        _fill(database, clock)
        clock.now = _NOW
        target.write_text(_draw(_status(database)), "utf-8")


def _fill(database: Path, clock: _Clock) -> None:
    from tokenstore import TokenManager
    from tokenstore.testing import Answer, AuthorizationServer

    with AuthorizationServer() as server, TokenManager(database) as manager:
        os.environ["SCREENS_SECRET"] = server.provider().client_secret or ""
        providers = database.with_name("providers.toml")
        providers.write_text(_PROVIDERS.format(endpoint=server.token_endpoint), "utf-8")
        providers.chmod(0o600)

        def sign_in(name: str, provider: str, ago: float) -> None:
            clock.now = _NOW - ago
            manager.save_tokens(name, server.sign_in(name), provider=provider)

        def use(name: str, ago: float) -> None:
            clock.now = _NOW - ago
            manager.get_valid_token(name)

        sign_in("alice@example.com", "google", 40 * _DAY)
        use("alice@example.com", 0.4 * _HOUR)
        sign_in("bob@example.com", "google", 12 * _DAY)
        use("bob@example.com", 2 * _HOUR)
        sign_in("billing@acme.example", "acme", 30 * _DAY)
        use("billing@acme.example", 27 * _DAY)
        sign_in("carol@acme.example", "acme", 0.3 * _HOUR)
        sign_in("dave@example.com", "google", 90 * _DAY)
        use("dave@example.com", 5 * _HOUR)
        sign_in("erin@acme.example", "acme", 9 * _DAY)
        use("erin@acme.example", 8 * _DAY)

        server.revoke("dave@example.com")
        use("dave@example.com", 3 * _HOUR)
        overloaded = Answer(503, headers={"Retry-After": "900"})
        server.script(overloaded, subject="erin@acme.example")
        use("erin@acme.example", 60)


def _status(database: Path) -> str:
    """Return the output on a terminal, with colours."""
    code = "from tokenstore.cli import app, output; output.force_terminal(); app.run(['status'])"
    setup = f"import time; time.time = lambda: {_NOW}; "
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {
        "TOKENSTORE_DATABASE": str(database),
        "COLUMNS": str(_COLUMNS),
        "FORCE_COLOR": "1",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    completed = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-c", setup + code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return completed.stdout.rstrip()


def _draw(output: str) -> str:
    from rich.console import Console
    from rich.text import Text

    with Path(os.devnull).open("w", encoding="utf-8") as devnull:
        console = Console(record=True, width=_COLUMNS, file=devnull, force_terminal=True)
        console.print(Text("$ tokenstore status", style="bold"))
        console.print(Text.from_ansi(output))
    svg = console.export_svg(title="tokenstore status", unique_id="status")
    # Use a font of the viewer's machine instead of fetching one.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("status.svg"))

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
sys.modules["google"] = sys.modules["httpx"] = None
for name in ("google", "httpx"):
    try:
        __import__(f"tokenstore.integrations.{name}")
    except ModuleNotFoundError as error:
        print(error, error.__cause__)
import tokenstore.integrations.mail, tokenstore.integrations.requests
"""


def test_a_missing_extra_raises_the_install_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT], check=True, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.splitlines() == [
        f"tokenstore.integrations.{name} needs its extra; "
        f"run: pip install 'tokenstore[{name}]' None"
        for name in ("google", "httpx")
    ]

"""A private file that sends a browser on to a sign-in page.

A browser's arguments are visible to every user of the machine. A user who reads the URL of a
sign-in page there could sign in first, and replace the expected login with another one.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from html import escape
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

_NAME = "sign-in.html"


class LaunchPage:
    """A file that redirects to a URL: 0600 in a directory of its own, until it is closed.

    Args:
        url: The sign-in page (secret!).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._files = ExitStack()
        self._closed = False

    def open(self) -> bool:
        """Open the page in a browser; return whether one was started."""
        import webbrowser

        try:
            file = self._create()
            return file is not None and webbrowser.open(file.as_uri())
        except (webbrowser.Error, OSError):
            return False

    def close(self) -> None:
        """Remove the file."""
        with self._lock:
            self._closed = True
            self._files.close()

    def _create(self) -> Path | None:
        with self._lock:
            if self._closed:
                return None
            directory = mkdtemp(prefix="tokenstore-")
            self._files.callback(rmtree, directory, ignore_errors=True)
            file = Path(directory, _NAME)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            with os.fdopen(os.open(file, flags, 0o600), "w", encoding="utf-8") as stream:
                stream.write(_html(self._url))
            return file


def _html(url: str) -> str:
    target = escape(url)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={target}">
<title>Sign in · tokenstore</title>
</head>
<body>
<p><a href="{target}">Continue to the sign-in page</a></p>
</body>
</html>
"""

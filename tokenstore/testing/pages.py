"""The pages on which a person signs in and allows or refuses. They work without scripts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tokenstore.testing.script import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

_STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 24rem; padding: 2rem 1rem; overflow-wrap: anywhere }
html, body { background: Canvas; color: CanvasText }
label, input:not([type=hidden]), button { display: block; width: 100%; box-sizing: border-box }
label, button { margin-top: 1rem }
input, button { font: inherit; padding: .5rem }
[role=alert] { color: light-dark(#a11, #f88) }
"""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "Referrer-Policy": "no-referrer",
}


def page(title: str, body: str, status: int = 200) -> Answer:
    """Return a page; *body* is HTML."""
    text = f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
<h1>{escape(title)}</h1>
{body}
</html>
"""
    return Answer(status, text, _HEADERS, "text/html; charset=utf-8")


def complaint(what: str) -> Answer:
    """Return the page for a request that must not be answered with a redirect."""
    return page("This cannot be done", f'<p role="alert">{escape(what)}</p>', 400)


def sign_in(ticket: str, username: str = "", fault: str = "") -> Answer:
    """Return the form that asks who it is."""
    body = f"""<label>User name
<input name="username" value="{escape(username)}" autocomplete="username" required></label>
<label>Password
<input name="password" type="password" autocomplete="current-password" required></label>
<button>Sign in</button>"""
    return _form("Sign in", "/sign-in", {"ticket": ticket}, body, fault)


def consent(ticket: str, subject: str, client_id: str, scope: str) -> Answer:
    """Return the form that asks whether the client may."""
    scopes = "".join(f"<li><code>{escape(name)}</code></li>" for name in scope.split(" "))
    body = f"""<p><strong>{escape(client_id)}</strong> wants to act for
<strong>{escape(subject)}</strong>:</p>
<ul>{scopes}</ul>
<button name="decision" value="allow">Allow</button>
<button name="decision" value="refuse">Refuse</button>"""
    return _form(f"Allow {client_id}?", "/consent", {"ticket": ticket}, body)


def device(user_code: str = "", fault: str = "") -> Answer:
    """Return the form that asks for the code that a device shows."""
    body = f"""<label>Code
<input name="user_code" value="{escape(user_code)}" autocomplete="off" required></label>
<button>Go on</button>"""
    return _form("Let a device in", "/device", {}, body, fault)


def _form(title: str, action: str, hidden: Mapping[str, str], body: str, fault: str = "") -> Answer:
    alert = f'<p role="alert">{escape(fault)}</p>' if fault else ""
    fields = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in hidden.items()
    )
    form = f'{alert}<form method="post" action="{action}">{fields}{body}</form>'
    return page(title, form, 400 if fault else 200)

"""The HTML pages of the authorization server: the sign-in form, and messages."""

from __future__ import annotations

from html import escape

from tokenstore.testing.protocol import NO_STORE
from tokenstore.testing.script import Answer


def message(title: str, text: str, status: int = 200) -> Answer:
    """Return a page without a form."""
    return _page(title, f"<p>{escape(text)}</p>", status)


def sign_in(username: str = "", *, user_code: str | None = None, error: str = "") -> Answer:
    """Return the form in which a user signs in and allows or refuses access.

    Args:
        username: The value of the user name field.
        user_code: The value of the field for a device's code. Defaults to no such field.
        error: Why the form is shown again.
    """
    code = "" if user_code is None else _field("Code", "user_code", user_code)
    body = f"""<p>{escape(error)}</p>
<form method="post">
{code}{_field("User name", "username", username)}{_field("Password", "password", type_="password")}
<button name="decision" value="allow">Allow</button>
<button name="decision" value="refuse">Refuse</button>
</form>"""
    return _page("Sign in", body, 400 if error else 200)


def _field(label: str, name: str, value: str = "", type_: str = "text") -> str:
    return f'<label>{label} <input name="{name}" type="{type_}" value="{escape(value)}"></label>\n'


def _page(title: str, body: str, status: int) -> Answer:
    text = f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>{title}</title>
<h1>{title}</h1>
{body}
</html>
"""
    return Answer(status, text, NO_STORE, "text/html; charset=utf-8")

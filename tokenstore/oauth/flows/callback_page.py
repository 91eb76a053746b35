"""The page that the browser shows after a sign-in: one file, without scripts or other resources."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from tokenstore.errors import StorageError, TokenRefreshError, WrongAccountError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.errors import TokenStoreError

_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f4f5f7; --card: #fff; --edge: #d9dde3; --ink: #1c2128; --soft: #57606a;
  --good: #1a7f37; --bad: #c2261d; --wait: #8a6100;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0e1116; --card: #171c24; --edge: #2e3641; --ink: #e8edf3; --soft: #a2acb8;
    --good: #4ac26b; --bad: #ff7b72; --wait: #e3b341;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; min-height: 100vh; min-height: 100svh; padding: 1rem;
  display: grid; place-items: center;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere;
}
main {
  width: 100%; max-width: 30rem; padding: 2.25rem 2rem 1.75rem;
  background: var(--card); border: 1px solid var(--edge); border-radius: 1rem;
}
svg { display: block; width: 3rem; height: 3rem; fill: none; stroke-width: 2.5;
  stroke: currentColor; stroke-linecap: round; stroke-linejoin: round }
.good svg { color: var(--good) }
.bad svg { color: var(--bad) }
.wait svg { color: var(--wait) }
h1 { margin: 1rem 0 .5rem; font-size: 1.5rem; line-height: 1.25 }
p { margin: .5rem 0 }
dl { margin: 1.25rem 0; padding: .9rem 0; border: solid var(--edge); border-width: 1px 0;
  display: grid; grid-template-columns: auto 1fr; gap: .35rem 1.25rem }
dt { color: var(--soft) }
dd { margin: 0; font-weight: 600 }
footer { margin-top: 1.25rem; color: var(--soft); font-size: .875rem }
@media (max-width: 26rem) {
  main { padding: 1.5rem 1.25rem }
  dl { grid-template-columns: 1fr; gap: 0 }
  dd + dt { margin-top: .6rem }
}
"""
_HASH = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the URL contains the code
    "X-Content-Type-Options": "nosniff",
}
_ICONS = {
    "good": '<path d="M7.5 12.5l3 3 6-7"/>',
    "bad": '<path d="M8.5 8.5l7 7m0-7l-7 7"/>',
    "wait": '<path d="M12 7v6m0 3.5v.01"/>',
}


@dataclass(frozen=True, slots=True)
class Page:
    """A page with the outcome of a sign-in.

    Attributes:
        status: The HTTP status.
        kind: ``good``, ``bad``, or ``wait`` if the sign-in continues elsewhere.
        title: The outcome, in two or three words.
        texts: What happened and what to do, one paragraph each, as plain text.
        details: Details by label, such as the account, as plain text.
    """

    status: int
    kind: str
    title: str
    texts: tuple[str, ...]
    details: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """Return the page as HTML, with all texts escaped."""
        texts = "\n".join(f"<p>{escape(text)}</p>" for text in self.texts)
        rows = "".join(
            f"<dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd>"
            for name, value in self.details.items()
        )
        details = f"<dl>{rows}</dl>" if rows else ""
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(self.title)} · tokenstore</title>
<style>{_STYLE}</style>
</head>
<body>
<main class="{self.kind}">
<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="10.5"/>\
{_ICONS[self.kind]}</svg>
<h1>{escape(self.title)}</h1>
{texts}
{details}
<footer>tokenstore, on this computer</footer>
</main>
</body>
</html>
"""


def success(account_name: str, provider: str, signed_in_as: str | None) -> Page:
    """Return the page after a successful sign-in."""
    details = {"Account": account_name, "Provider": provider}
    if signed_in_as not in {None, account_name}:
        details["Signed in as"] = str(signed_in_as)
    return Page(200, "good", "Signed in", ("You're signed in. You can close this page.",), details)


def failure(account_name: str, provider: str, error: TokenStoreError) -> Page:
    """Return the page after a failed sign-in."""
    reason = str(error).removeprefix(f"{account_name}: ").removesuffix("; start again")
    reason, stored, _ = reason.partition("nothing was stored")  # the rest is for the program
    reason += stored
    title, advice = "Not signed in", "Go back to the program that opened this page and try again."
    if isinstance(error, WrongAccountError):
        title = "Different user"
        advice = (
            "Sign out at the provider, or use a private window, and start again from the program "
            "that opened this page."
        )
    elif isinstance(error, TokenRefreshError) and error.error == "access_denied":
        title = "Sign-in refused"
    elif isinstance(error, StorageError):
        title = "Signed in, but not stored"
    details = {"Account": account_name, "Provider": provider}
    return Page(400, "bad", title, (f"{reason[:1].upper()}{reason[1:]}.", advice), details)


INTERRUPTED = Page(
    503,
    "bad",
    "Not signed in",
    ("The program that opened this page was stopped. Start the sign-in there again.",),
)
WRONG_STATE = Page(
    400,
    "wait",
    "Not this sign-in",
    (
        "This response belongs to a different sign-in, so it was not used.",
        "The program is still waiting. Close this page and continue in the latest one.",
    ),
)
ALREADY_COMPLETE = Page(
    409,
    "wait",
    "Already complete",
    ("This sign-in is already complete. You can close this page.",),
)
NOT_FOUND = Page(
    404, "wait", "Page not found", ("This URL is only for a sign-in that is in progress.",)
)

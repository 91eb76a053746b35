"""The page on which the browser ends: one file, no script, nothing from elsewhere."""

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
    "Referrer-Policy": "no-referrer",  # the address holds the code
    "X-Content-Type-Options": "nosniff",
}
_SIGNS = {
    "good": '<path d="M7.5 12.5l3 3 6-7"/>',
    "bad": '<path d="M8.5 8.5l7 7m0-7l-7 7"/>',
    "wait": '<path d="M12 7v6m0 3.5v.01"/>',
}


@dataclass(frozen=True, slots=True)
class Page:
    """A page that says how a sign-in ended.

    Attributes:
        status: The HTTP status.
        kind: ``good``, ``bad``, or ``wait`` if the sign-in goes on.
        title: How it ended, in two or three words.
        texts: What happened and what to do, a paragraph each, as plain text.
        facts: What to show of it, such as the account, as plain text.
    """

    status: int
    kind: str
    title: str
    texts: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """Return the page, with every text escaped."""
        texts = "\n".join(f"<p>{escape(text)}</p>" for text in self.texts)
        rows = "".join(
            f"<dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd>"
            for name, value in self.facts.items()
        )
        facts = f"<dl>{rows}</dl>" if rows else ""
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
{_SIGNS[self.kind]}</svg>
<h1>{escape(self.title)}</h1>
{texts}
{facts}
<footer>tokenstore, on this computer</footer>
</main>
</body>
</html>
"""


def success(account_name: str, provider: str, signed_in_as: str | None) -> Page:
    """Return the page after a sign-in that is stored."""
    facts = {"Account": account_name, "Provider": provider}
    if signed_in_as not in {None, account_name}:
        facts["Signed in as"] = str(signed_in_as)
    text = "The sign-in is stored. You can close this page."
    return Page(200, "good", "Signed in", (text,), facts)


def failure(account_name: str, provider: str, error: TokenStoreError) -> Page:
    """Return the page after a sign-in that came to nothing."""
    what = str(error).removeprefix(f"{account_name}: ").removesuffix("; start again")
    what, stored, _ = what.partition("nothing was stored")  # what follows is for the program
    what += stored
    title, advice = "Not signed in", "Go back to the program that opened this page and try again."
    if isinstance(error, WrongAccountError):
        title = "Somebody else signed in"
        advice = (
            "Sign out at the provider, or use a private window, and start again from the program "
            "that opened this page."
        )
    elif isinstance(error, TokenRefreshError) and error.error == "access_denied":
        title = "Sign-in refused"
    elif isinstance(error, StorageError):
        title = "Signed in, but not stored"
    facts = {"Account": account_name, "Provider": provider}
    return Page(400, "bad", title, (f"{what[:1].upper()}{what[1:]}.", advice), facts)


INTERRUPTED = Page(
    503,
    "bad",
    "Not signed in",
    ("The program that opened this page was stopped. Start the sign-in there again.",),
)
STRAY = Page(
    400,
    "wait",
    "Not this sign-in",
    (
        "This answer belongs to another sign-in than the one under way, so it was not used.",
        "The program still waits. Close this page and go on in the one that it opened last.",
    ),
)
OVER = Page(
    409,
    "wait",
    "Already answered",
    ("This sign-in has its answer. You can close this page.",),
)
NOWHERE = Page(404, "wait", "Nothing here", ("This address is only for a sign-in under way.",))

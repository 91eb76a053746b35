"""The shape of a file: where its tokens are, under which names, and how it writes an expiry.

An import remembers the shape if it is not the default one, so that an export can give the file back
to the program that wrote it. It is stored in a field of the account. No I/O.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import repeat
from typing import TYPE_CHECKING, Any

from tokenstore.models.timestamps import NEVER, local_iso, parse_seconds, parse_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MEMORY = "tokenstore_file"
"""The field of an account that holds the shape of its file."""

# The keys of each field in order of precedence, with the time zone of a naive time (None: local).
ACCESS = ("access_token", "accessToken", "token")
REFRESH = ("refresh_token", "refreshToken")
EXPIRY: dict[str, tzinfo | None] = {
    "expires_at": None,
    "expiresAt": None,
    "expiry": UTC,  # google-auth
    "token_expiry": UTC,  # oauth2client
    "expiry_date": UTC,  # Google's library for Node.js, in milliseconds
}
OBTAINED = ("obtained_at", "created_at")
RESPONSE = "token_response"  # oauth2client keeps the last token response there

_EXAMPLES: dict[str, Any] = {  # how the programs that use a name write an expiry
    "expiresAt": 0,
    "expiry_date": 0,
    "expiry": "2000-01-01T00:00:00Z",
    "token_expiry": "2000-01-01T00:00:00Z",
}
_EXPIRY_BESIDE = {"accessToken": "expiresAt", "token": "expiry"}
_MILLISECONDS = {"expiresAt", "expiry_date"}
_SECONDS_END = 1e11  # a larger number counts milliseconds
_SMALL = 2048  # characters, of what is remembered with each of several accounts

_ACCESS, _REFRESH = ("access_token",), ("refresh_token",)  # the names of the old format

_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class FileShape:
    """How a file holds the tokens of an account.

    Attributes:
        name: The name of the file, or None for the default one.
        path: Where in the document the token set is; empty if it is the document.
        several: Whether the file holds several accounts.
        around: The document without the token set; None if there is nothing else in it.
        outer: Names of the account's fields outside of the token set, with their depth.
        access_token: The names of the access token.
        refresh_token: The names of the refresh token.
        expiry: The names of the expiry, with the values that the file had.
        obtained: The name of the time from which the lifetime counts, where that gives the expiry.
    """

    name: str | None = None
    path: _Path = ()
    several: bool = False
    around: Any = field(default=None, repr=False)
    outer: Mapping[str, int] = field(default_factory=dict)
    access_token: tuple[str, ...] = _ACCESS
    refresh_token: tuple[str, ...] = _REFRESH
    expiry: Mapping[str, Any] = field(default_factory=dict)
    obtained: str | None = None

    @property
    def expiry_name(self) -> str:
        """The name under which an export writes the expiry."""
        first = next(iter(self.expiry), None)
        return first or _EXPIRY_BESIDE.get(self.access_token[0], "expires_at")

    def to_json(self, *, inside: bool = False) -> dict[str, Any] | None:
        """Return what is not the default, None if all is.

        Args:
            inside: Leave out what the file itself shows.
        """
        found: dict[str, Any] = {
            "name": self.name,
            "access_token": [*self.access_token] if self.access_token != _ACCESS else None,
            "refresh_token": [*self.refresh_token] if self.refresh_token != _REFRESH else None,
            "expiry": self.expiry,
            "obtained": self.obtained,
        }
        if not inside:
            found |= {
                "path": [*self.path],
                "several": self.several,
                "around": self.around,
                "outer": self.outer,
            }
        return {name: value for name, value in found.items() if value} or None

    @classmethod
    def from_json(cls, data: object) -> FileShape:
        """Return the shape that `to_json` gave; what is not valid in it counts as the default."""
        found = data if isinstance(data, dict) else {}
        path: Any = found.get("path")
        name, outer, expiry = found.get("name"), found.get("outer"), found.get("expiry")
        return cls(
            name=name if isinstance(name, str) and name else None,
            path=tuple(path) if _is_path(path) else (),
            several=found.get("several") is True and _is_path(path),
            around=found.get("around"),
            outer=_valid(outer, lambda _, depth: depth in {0, 1}),
            access_token=_names(found, "access_token", (*ACCESS, RESPONSE)),
            refresh_token=_names(found, "refresh_token", REFRESH),
            expiry=_valid(expiry, lambda name, _: name in EXPIRY),
            obtained=found["obtained"] if found.get("obtained") in OBTAINED else None,
        )

    def place(self, tokens: Mapping[str, Any], document: Any = None) -> Any:
        """Return a document in which the token set stands where it stood.

        Args:
            tokens: The fields of the account, under the names that they have in the file.
            document: The document to put it in. Defaults to what stood around it.
        """
        if not self.path:
            return dict(tokens)
        inner = dict(tokens)
        document = copy.deepcopy(self.around) if document is None else document
        for name, depth in self.outer.items():
            if name in inner and depth < len(self.path):
                document = put(document, (*self.path[:depth], name), inner.pop(name))
        return put(document, self.path, inner)


DEFAULT = FileShape()
"""The shape of the old format, in a file that is called like the account."""

SECONDS = {int: FileShape(expiry={"expires_at": 0}), float: FileShape(expiry={"expires_at": 0.0})}
"""The shapes of files that count the seconds of the epoch, by the type of the number."""


def find_token_sets(document: Mapping[str, Any]) -> list[_Path]:
    """Return where in a document token sets are, one or two levels down."""
    found: list[_Path] = []
    for key, value in _items(document):
        if is_nested_set(value):
            found.append((key,))
        else:
            found += [(key, k) for k, inner in _items(value) if is_nested_set(inner)]
    return found


def is_nested_set(value: object) -> bool:
    """Return whether *value* is an object with tokens, as it may be inside of another."""
    if not isinstance(value, dict):
        return False
    if any(_is_text(value.get(name)) for name in (*ACCESS[:2], *REFRESH)):
        return True
    # "token" alone may be any other program's password.
    return _is_text(value.get("token")) and any(
        value.get(name) for name in ("token_uri", "scopes", "client_id", *EXPIRY)
    )


def is_deeper(document: object, depth: int = 6) -> bool:
    """Return whether there is a token set further down in a document."""
    return is_nested_set(document) or (
        depth > 0 and any(is_deeper(value, depth - 1) for _, value in _items(document))
    )


def take_out(
    document: Mapping[str, Any], path: _Path
) -> tuple[dict[str, Any], Any, dict[str, int]]:
    """Return the fields of the only token set of a document, and what is needed to put it back.

    Returns:
        The fields, with those around the token set; the document without them, or None if there is
        nothing else in it; and the names of the fields that stood outside, with their depth.
    """
    around: Any = without(document, [path])
    inner: dict[str, Any] = dict(at(document, path))
    outer: dict[str, int] = {}
    for depth in range(len(path)):
        level = at(around, path[:depth])
        if not isinstance(level, dict):
            continue
        for name in [n for n in level if n != path[depth] and n not in inner]:
            inner[name] = level.pop(name)
            outer[name] = depth
    return inner, None if around == put(None, path, None) else around, outer


def without(document: Mapping[str, Any], paths: Sequence[_Path]) -> Any:
    """Return a copy of a document with null in the place of its token sets."""
    rest: Any = copy.deepcopy(dict(document))
    for path in paths:
        rest = put(rest, path, None)
    return rest


def shared_rests(rest: Any) -> Iterator[Any]:
    """Yield what each of several accounts of a file remembers of the rest of the file."""
    yield rest
    yield from repeat(rest if len(json.dumps(rest)) <= _SMALL else None)


def at(document: Any, path: _Path) -> Any:
    """Return what is at *path* in a document."""
    for key in path:
        document = document[key]
    return document


def put(document: Any, path: _Path, value: Any) -> Any:
    """Put a value into a document, which is changed or made as needed; return the document."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        items = document if isinstance(document, list) else []
        items.extend([None] * (key + 1 - len(items)))
        items[key] = put(items[key], rest, value)
        return items
    mapping = document if isinstance(document, dict) else {}
    mapping[key] = put(mapping.get(key), rest, value)
    return mapping


def write_timestamp(name: str, example: object, expires_at: float | None) -> Any:
    """Return a timestamp, usually an expiry, as the program writes it that wrote *example*.

    Args:
        name: The name of the field.
        example: The value that the file had, None if it had none.
        expires_at: The timestamp, in UTC epoch seconds, or None if it is unknown.
    """
    zone = EXPIRY.get(name)
    known = parse_timestamp(example, naive=zone)
    if known == expires_at:
        return example
    if expires_at is None:
        return None
    if example is None:
        example = _EXAMPLES.get(name)
    if isinstance(example, str) and parse_seconds(example) is None:
        return _write_text(example, zone, expires_at)
    if example is None:
        return local_iso(expires_at)
    number = parse_seconds(example) or 0.0
    in_milliseconds = name in _MILLISECONDS if number == 0 else number > _SECONDS_END
    value: float = expires_at * 1000 if in_milliseconds else expires_at
    if isinstance(example, int) or (isinstance(example, str) and "." not in example):
        value = int(value)
    return str(value) if isinstance(example, str) else value


def _write_text(example: str, zone: tzinfo | None, expires_at: float) -> str | None:
    text = example.strip()
    try:
        shown = datetime.fromisoformat(text.upper())
    except ValueError:
        return local_iso(expires_at)
    if expires_at > NEVER - timedelta(days=1).total_seconds():
        return None if shown.tzinfo is None and zone is None else "9999-12-31T23:59:59Z"
    time = datetime.fromtimestamp(expires_at, UTC).astimezone(shown.tzinfo or zone)
    if shown.tzinfo is None:
        time = time.replace(tzinfo=None)
    separator = text[10] if len(text) > 10 and not text[10].isdigit() else "T"  # noqa: PLR2004
    digits = "microseconds" if "." in text else "seconds"
    written = time.isoformat(separator, digits)
    return written.replace("+00:00", text[-1]) if text[-1] in "Zz" else written


def _items(value: object) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_path(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) in {1, 2}
        and all(isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 20) for key in value)
    )


def _names(found: Mapping[str, Any], name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    value = found.get(name)
    names = tuple(n for n in value if n in known) if isinstance(value, list) else ()
    return names or (name,)


def _valid(value: object, is_valid: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if is_valid(k, v)}

"""The JSON formats of token files: parses them to accounts, and formats exports. No I/O."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import TYPE_CHECKING, Any, Literal

from tokenstore.errors import InvalidTokenError
from tokenstore.importers.shapes import (
    ACCESS,
    DEFAULT,
    EXPIRY,
    MEMORY,
    OBTAINED,
    REFRESH,
    RESPONSE,
    SECONDS,
    FileShape,
    at,
    find_token_sets,
    is_deeper,
    is_nested_set,
    put,
    shared_rests,
    take_out,
    without,
    write_timestamp,
)
from tokenstore.models.timestamps import (
    clamp_to_calendar,
    local_iso,
    parse_seconds,
    parse_timestamp,
)
from tokenstore.models.tokens import TokenSet, is_token, normalize_account_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenstore.models.further_tokens import FurtherToken

_EXPORT_KEY = "tokenstore"  # added by an export
_WRITTEN = "written"  # in it: the expiry as the file has it
_OWN_FIELD = "field"  # in it: a field of the account that is called like the key
_EXPIRED = 0.0  # for an expiry that is not valid: due at once, and earlier than any other

_INVALID_EXPIRY = "its expiry is not a valid timestamp; the token counts as expired"
_NO_TOKENS = "neither an access token nor a refresh token"

_UNUSUAL = {*ACCESS, *REFRESH, *EXPIRY, RESPONSE} - {"access_token", "refresh_token", "expires_at"}
_Source = Literal["file", "key", "content", "export"]


class _ConstantError(Exception):
    """The JSON has NaN or Infinity."""


def _refuse(_: str) -> None:
    raise _ConstantError


_decoder = json.JSONDecoder(parse_constant=_refuse)  # json.loads creates one on each call


@dataclass(frozen=True, slots=True)
class ImportedAccount:
    """An account that was read from a file.

    Attributes:
        account_name: The name of the account.
        provider: The provider of the account, or None if the file has none.
        tokens: The tokens.
        note: What was not valid or not imported, or None.
        source: Where the name comes from: the name of the file, that and a key in it, the rest of
            the content, or the key that an export adds.
        shape: The shape of the file.
        further: Further access tokens of the login.
    """

    account_name: str
    provider: str | None
    tokens: TokenSet
    note: str | None = None
    source: _Source = "content"
    shape: FileShape = DEFAULT
    further: tuple[FurtherToken, ...] = ()


class UnreadableFileError(Exception):
    """No account can be imported from the file. The reason does not quote the content."""


@dataclass(frozen=True, slots=True)
class UnreadableEntry:
    """An entry of a file that cannot be imported.

    Attributes:
        reason: Why it cannot. Does not quote the content.
        account_name: The name of the account, or None if it is unknown.
    """

    reason: str
    account_name: str | None = None


def parse_json(content: str | bytes, *, constants: list[str] | None = None) -> Any:
    """Parse JSON; NaN and Infinity become null.

    Args:
        content: The JSON.
        constants: A list to add each NaN and Infinity to.

    Raises:
        ValueError: It is not valid JSON, or nested too deeply.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    found = [] if constants is None else constants
    try:
        try:
            return _decoder.decode(content)
        except _ConstantError:
            return json.JSONDecoder(parse_constant=found.append).decode(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def has_tokens(data: object) -> bool:
    """Return whether parsed JSON is an object with the tokens of one account at its top."""
    if not isinstance(data, dict):
        return False
    for name in ACCESS:
        if data.get(name) and not is_nested_set(data[name]):
            return True
    if _from_token_response(data):
        return True
    return any(map(data.get, REFRESH)) and not any(is_nested_set(data.get(n)) for n in ACCESS)


def accounts_from_json(data: object, *, stem: str) -> list[ImportedAccount | UnreadableEntry]:
    """Read the accounts in a file without tokens at its top: any number one or two levels down.

    Args:
        data: The parsed JSON.
        stem: The name of the file without ``.json``.

    Raises:
        InvalidTokenError: There are no tokens, or a field of the only account is not valid.
    """
    if not isinstance(data, dict):
        return [account_from_json(data, stem=stem)]
    paths = find_token_sets(data)
    if not paths and is_deeper(data):
        raise InvalidTokenError("file", "its tokens are nested more than two levels deep")
    if not paths:
        return [account_from_json(data, stem=stem)]
    document = dict(data)
    block = document.get(_EXPORT_KEY)
    blocks = block.get("accounts") if isinstance(block, dict) else None
    if isinstance(block, dict) and isinstance(blocks, list):
        del document[_EXPORT_KEY]
        if _OWN_FIELD in block:
            document[_EXPORT_KEY] = block[_OWN_FIELD]
    elif len(paths) == 1:
        return [_only_account(document, stem)]
    paths = find_token_sets(document)
    return _several_accounts(document, paths, stem, blocks if isinstance(blocks, list) else [])


def account_from_json(data: object, *, stem: str) -> ImportedAccount:
    """Read the account at the top of a file.

    Args:
        data: The parsed JSON.
        stem: The name of the file without ``.json``; the account name if *data* has none.

    Raises:
        InvalidTokenError: There are no tokens, or a field is not valid.
    """
    if not isinstance(data, dict):
        raise InvalidTokenError("file", "expected a JSON object")
    usual = _usual_account(data, stem)
    if usual is not None:
        return usual
    fields = dict(data)
    return _account(fields, _pop_export(fields), name=stem, stem=stem)


def _usual_account(data: dict[str, Any], stem: str) -> ImportedAccount | None:
    """Read the account in a file with the usual names, as most have; None if it is another file.

    It gives what `_account` gives, in half the time.
    """
    if not _UNUSUAL.isdisjoint(data) or _EXPORT_KEY in data:
        return None
    written = data.get("expires_at")
    expires_at = parse_timestamp(written)
    both = isinstance(data.get("access_token"), str) and isinstance(data.get("refresh_token"), str)
    if expires_at is None or not both or not (data["access_token"] and data["refresh_token"]):
        return None
    if type(written) in SECONDS and written == expires_at:
        shape = SECONDS[type(written)]
    elif isinstance(written, str) and written == local_iso(expires_at):
        shape = DEFAULT
    else:
        shape = FileShape(expiry={"expires_at": written})
    tokens = TokenSet.from_fields(data, expires_at=expires_at, obtained_at=obtained_at_of(data))
    return ImportedAccount(normalize_account_name(stem), None, tokens, None, "file", shape)


def _only_account(document: dict[str, Any], stem: str) -> ImportedAccount:
    export = _pop_export(document)
    paths = find_token_sets(document)
    if len(paths) != 1:
        raise InvalidTokenError("file", f"has no tokens outside of its key {_EXPORT_KEY!r}")
    [path] = paths
    fields, around, outer = take_out(document, path)
    place = FileShape(path=path, around=around, outer=outer)
    return _account(fields, export, name=stem, stem=stem, place=place)


def _several_accounts(
    document: dict[str, Any],
    paths: list[tuple[Any, ...]],
    stem: str,
    blocks: list[Any],
) -> list[ImportedAccount | UnreadableEntry]:
    rest = without(document, paths)
    rest = None if rest == _empty(paths) else rest
    labels = Counter(str(path[-1]) for path in paths)
    by_path = {
        tuple(block["path"]): block
        for block in blocks
        if isinstance(block, dict) and _is_list_of_keys(block.get("path"))
    }
    accounts: list[ImportedAccount | UnreadableEntry] = []
    rests = shared_rests(rest)
    for path in paths:
        label = str(path[-1]) if labels[str(path[-1])] == 1 else ".".join(map(str, path))
        place = FileShape(path=path, several=True, around=next(rests))
        fields = dict(at(document, path))
        export = by_path.get(path, {})
        name = f"{stem}:{label}"
        try:
            account = _account(fields, export, name=name, stem=stem, place=place)
        except InvalidTokenError as error:
            accounts.append(UnreadableEntry(str(error), _valid_name(name)))
        else:
            accounts.append(account)
    return accounts


def _account(
    fields: dict[str, Any],
    export: Mapping[str, Any],
    *,
    name: str,
    stem: str,
    place: FileShape = DEFAULT,
) -> ImportedAccount:
    """Read the account with these fields.

    Args:
        fields: The fields, without what an export added. Changed.
        export: What an export added; empty if it is not an export.
        name: The account name if *export* has none.
        stem: The name of the file without ``.json``.
        place: Where in the file the fields were.
    """
    data = dict(fields)
    shape = FileShape.from_json(export["file"]) if "file" in export else DEFAULT
    access = _pop_named(fields, shape.access_token, ACCESS)
    refresh = _pop_named(fields, shape.refresh_token, () if export else REFRESH)
    if access is None and refresh is None:
        refresh = _pop_named(fields, (), REFRESH)
    access_token = access[1] if access else _from_token_response(fields)
    refresh_token = refresh[1] if refresh else None
    if access_token is None and refresh_token is None:
        raise InvalidTokenError("access_token", _NO_TOKENS)

    exported = parse_timestamp(export.get("expires_at")) if export else None
    unchanged = bool(export) and _is_unchanged(export, exported, data, shape)
    note = None
    if unchanged:
        expires_at = exported
        if shape.expiry_name != "expires_at":
            fields.pop(shape.expiry_name, None)
    else:
        expires_at, note = _pop_expiry(fields, first=shape.expiry_name if export else None)
    provider = None
    source: _Source = "key" if place.several else "file"
    if unchanged or (export and stem in _possible_stems(export, shape)):
        name = export.get("account_name") or name
        provider = export.get("provider")
        source = "export"
    elif shape.name is not None:
        shape = replace(shape, name=None)
    if not export:
        shape = _shape_of(data, access_token, refresh_token, expires_at, fields)
    # A token without a key in the file stays absent.
    if access_token is not None or "access_token" in data:
        fields["access_token"] = access_token
    if refresh_token is not None or "refresh_token" in data:
        fields["refresh_token"] = refresh_token
    return ImportedAccount(
        account_name=normalize_account_name(name),
        provider=provider if is_token(provider) else None,
        tokens=TokenSet.from_fields(
            fields, expires_at=expires_at, obtained_at=obtained_at_of(fields)
        ),
        note=note,
        source=source,
        shape=_at_place(shape, place),
    )


def _at_place(shape: FileShape, place: FileShape) -> FileShape:
    """Return a shape with the place of the token set in the document."""
    if place is DEFAULT:
        return shape
    return replace(
        shape, path=place.path, several=place.several, around=place.around, outer=place.outer
    )


def _shape_of(
    data: Mapping[str, Any],
    access_token: Any,
    refresh_token: Any,
    expires_at: float | None,
    fields: Mapping[str, Any],
) -> FileShape:
    """Return the names and the formats in a file that no export has written.

    Args:
        data: The fields as they were.
        access_token: The access token.
        refresh_token: The refresh token.
        expires_at: The expiry that was read.
        fields: The fields that are left.
    """
    names = [n for n in ACCESS if access_token is not None and data.get(n) == access_token]
    if not names:
        in_response = access_token is not None and "access_token" not in data
        names = [RESPONSE] if in_response else [n for n in ACCESS if n in data]
    refresh = [n for n in REFRESH if refresh_token is not None and data.get(n) == refresh_token]
    expiry = {
        name: data[name]
        for name, zone in EXPIRY.items()
        if name in data and parse_timestamp(data[name], naive=zone) == expires_at
    }
    read = [name for name in expiry if name not in fields]  # the one that was used comes first
    expiry = {name: expiry[name] for name in (*read, *expiry)}
    obtained = None if expiry or "expires_in" not in data else _obtained_name(data)
    if {*expiry} == {"expires_at"} and expires_at is not None:
        expiry = {} if expiry["expires_at"] == local_iso(expires_at) else expiry
    return FileShape(
        access_token=tuple(names) or ("access_token",),
        refresh_token=tuple(refresh or [n for n in REFRESH if n in data]) or ("refresh_token",),
        expiry=expiry,
        obtained=obtained,
    )


def tokens_to_store(tokens: TokenSet, shape: FileShape) -> TokenSet:
    """Return tokens with the shape of their file, if it is not the default one."""
    if shape is DEFAULT and MEMORY not in tokens.extra:
        return tokens
    extra = dict(tokens.extra)
    extra.pop(MEMORY, None)
    if (memory := shape.to_json()) is not None:
        extra[MEMORY] = memory
    return tokens.with_extra(extra)


def account_from_entry(
    account_name: object,
    fields: Mapping[str, Any],
    *,
    expires_at: object,
    obtained_at: float | None = None,
    note: str | None = None,
) -> ImportedAccount | UnreadableEntry:
    """Read one entry of a storage with many accounts.

    Args:
        account_name: The name of the account.
        fields: Its tokens as ``access_token`` and ``refresh_token``, and any other fields.
        expires_at: Expiry of the access token as stored, or None if it is unknown.
        obtained_at: When the refresh token was obtained, in UTC epoch seconds, or None.
        note: A note to report with the account.
    """
    name = None
    try:
        name = normalize_account_name(account_name)
        if fields.get("access_token") is None and fields.get("refresh_token") is None:
            raise InvalidTokenError("access_token", _NO_TOKENS)
        expiry = parse_timestamp(expires_at, naive=UTC)
        if expiry is None and expires_at is not None:
            expiry = _EXPIRED
            note = "; ".join(filter(None, (_INVALID_EXPIRY, note)))
        tokens = TokenSet.from_fields(fields, expires_at=expiry, obtained_at=obtained_at)
    except InvalidTokenError as error:
        return UnreadableEntry(str(error), name)
    return ImportedAccount(name, None, tokens, note)


def add_note(
    accounts: Iterable[ImportedAccount | UnreadableEntry], note: str
) -> list[ImportedAccount | UnreadableEntry]:
    """Return *accounts* with a note added to the first that can be imported."""
    accounts = list(accounts)
    for number, account in enumerate(accounts):
        if isinstance(account, ImportedAccount):
            notes = "; ".join(filter(None, (account.note, note)))
            accounts[number] = replace(account, note=notes)
            break
    return accounts


@dataclass(frozen=True, slots=True)
class ExportedAccount:
    """An account as it stands in a file.

    Attributes:
        shape: The shape of the file.
        fields: The fields under the names that they have in the file.
        block: What the export adds about the account.
    """

    shape: FileShape
    fields: dict[str, Any] = field(repr=False)
    block: dict[str, Any] = field(repr=False)

    def document(self) -> dict[str, Any]:
        """Return the content of a file with this account alone."""
        document = self.shape.place(self.fields)
        if not isinstance(document, dict):  # what is remembered of the file is damaged
            document = dict(self.fields)
        return _with_block(document, self.block)


def account_to_json(account_name: str, provider: str | None, tokens: TokenSet) -> dict[str, Any]:
    """Return the content of an exported file, which older programs can read.

    A file that was imported gets the shape that it had. In any other, ``expires_at`` is a naive
    local ISO string, null for no expiry, and absent if it is unknown.
    """
    return exported_account(account_name, provider, tokens).document()


def accounts_to_json(accounts: Sequence[ExportedAccount]) -> dict[str, Any]:
    """Return the content of an exported file that had, or has, several accounts."""
    around = max((a.shape.around for a in accounts), key=lambda rest: len(str(rest or "")))
    document: Any = copy.deepcopy(around)
    for account in accounts:
        document = account.shape.place(account.fields, document if document is not None else {})
    document = document if isinstance(document, dict) else {}
    blocks = [{**a.block, "path": list(a.shape.path)} for a in accounts]
    return _with_block(document, {"version": 1, "accounts": blocks})


def _with_block(document: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """Return a document with what an export adds, which keeps a field of the same name."""
    own = {_OWN_FIELD: document[_EXPORT_KEY]} if _EXPORT_KEY in document else {}
    return {**document, _EXPORT_KEY: {**block, **own}}


def shape_of_file(tokens: TokenSet) -> FileShape:
    """Return the shape of the file that an account was imported from."""
    return FileShape.from_json(tokens.extra.get(MEMORY))


def exported_account(account_name: str, provider: str | None, tokens: TokenSet) -> ExportedAccount:
    """Return an account as it stands in an exported file."""
    fields = dict(tokens.extra)
    shape = FileShape.from_json(fields.pop(MEMORY, None))
    block: dict[str, Any] = {
        "version": 1,
        "account_name": account_name,
        "provider": provider,
        "expires_at": tokens.expires_at,
    }
    if _EXPORT_KEY in fields and (not shape.path or shape.outer.get(_EXPORT_KEY) == 0):
        block[_OWN_FIELD] = fields.pop(_EXPORT_KEY)
    for names, token in (
        (shape.access_token, tokens.access_token),
        (shape.refresh_token, tokens.refresh_token),
    ):
        if names[0] not in {"access_token", "refresh_token"}:
            fields.pop("access_token" if names is shape.access_token else "refresh_token", None)
        for name in names if token is not None else ():
            if name == RESPONSE:
                response = fields.get(RESPONSE)
                fields[RESPONSE] = {**(response if isinstance(response, dict) else {})}
                fields[RESPONSE]["access_token"] = token
            else:
                fields[name] = token
    _write_expiry(fields, shape, tokens.expires_at)
    if shape.expiry_name in fields:
        block[_WRITTEN] = fields[shape.expiry_name]
    if (memory := shape.to_json(inside=True)) is not None:
        block["file"] = memory
    # The token itself comes first, for people who read the file.
    order = [n for n in (*shape.access_token, *shape.refresh_token) if n in fields]
    return ExportedAccount(shape, {n: fields[n] for n in (*order, *fields)}, block)


def _write_expiry(fields: dict[str, Any], shape: FileShape, expires_at: float | None) -> None:
    """Set the expiry under each of its names, and when a token with a lifetime was obtained."""
    first = shape.expiry_name
    if not shape.expiry:
        fields.pop("expires_at", None)
        if expires_at is not None:
            fields[first] = write_timestamp(first, None, expires_at)
    for name, example in shape.expiry.items():
        fields[name] = write_timestamp(name, example, expires_at)
    lifetime, name = parse_seconds(fields.get("expires_in")), shape.obtained or ""
    if lifetime is not None and expires_at is not None and name in fields:
        # After a refresh, it is the new lifetime, which counts from the new time.
        fields[name] = write_timestamp(name, fields[name], expires_at - lifetime)


def export_block(data: object) -> Mapping[str, Any] | None:
    """Return what an export added to a file, or None if no export has written it."""
    block = data.get(_EXPORT_KEY) if isinstance(data, dict) else None
    return block if isinstance(block, dict) and "version" in block else None


def has_more(existing: object, document: Mapping[str, Any]) -> bool:
    """Return whether a file has tokens or fields that replacing it by *document* would lose."""
    if not isinstance(existing, dict):
        return False
    is_known = existing.keys() <= {_EXPORT_KEY, *document}
    return not (is_known and {*find_token_sets(existing)} <= {*find_token_sets(document)})


def exported_accounts(data: object) -> list[tuple[str, bool]]:
    """Return the accounts in a file that an export wrote, and whether each is unchanged since."""
    block = export_block(data)
    if block is None or not isinstance(data, dict):
        return []
    accounts: list[tuple[str, bool]] = []
    several = block.get("accounts")
    for found in several if isinstance(several, list) else [block]:
        if not isinstance(found, dict) or not is_token(found.get("account_name")):
            continue
        shape = FileShape.from_json(found.get("file"))
        path = tuple(found["path"]) if _is_list_of_keys(found.get("path")) else ()
        paths = [path] if path else [(), *find_token_sets(data)]
        exported = parse_timestamp(found.get("expires_at"))
        unchanged = any(_is_unchanged(found, exported, _fields_at(data, p), shape) for p in paths)
        accounts.append((found["account_name"], unchanged))
    return accounts


def _fields_at(data: Any, path: tuple[Any, ...]) -> Mapping[str, Any]:
    try:
        fields = at(data, path)
    except (LookupError, TypeError):
        return {}
    return fields if isinstance(fields, dict) else {}


def file_stem(account_name: str, *, case_sensitive: bool = True) -> str:
    """Return the name, without ``.json``, of the file of an account.

    An account name that is a valid file name is the name of the file. For any other, it is the safe
    characters, "~" and a hash. A name that ends like that gets a hash too, so that two accounts
    never have the same file.

    Args:
        account_name: The account.
        case_sensitive: Whether file names on the file system are case-sensitive.
    """
    folded = account_name if case_sensitive else account_name.casefold()
    if (
        folded == account_name
        and is_file_name(f"{account_name}.json")
        and not _HASHED.search(account_name)
    ):
        return account_name
    return hashed_stem(account_name)


def hashed_stem(account_name: str) -> str:
    """Return a file name, without ``.json``, that no other account has."""
    digest = hashlib.sha256(account_name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'^-|[^A-Za-z0-9@_-]+', '_', account_name)[:80]}~{digest}"


def is_file_name(name: str) -> bool:
    """Return whether an exported file can have this name.

    It must be valid on POSIX systems, visible, not an option for a command, and short enough for
    the temporary file that gets the name.
    """
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:  # not in the encoding of the file system
        return False
    return (
        0 < size <= _MAX_FILE_NAME
        and not name.startswith((".", "-"))
        and not {*name} & {"/", "\0"}
        and name.isprintable()
    )


_MAX_FILE_NAME = 255 - len("..0123456789abcdef.tmp")
_HASHED = re.compile(r"~[0-9a-f]{16}$")


def _pop_export(document: dict[str, Any]) -> Mapping[str, Any]:
    """Remove and return what an export added; a program may have a field of the same name."""
    block = document.get(_EXPORT_KEY)
    if not (isinstance(block, dict) and {"account_name", "expires_at"} <= block.keys()):
        return {}
    del document[_EXPORT_KEY]
    if _OWN_FIELD in block:
        document[_EXPORT_KEY] = block[_OWN_FIELD]
    return block


def _pop_named(
    fields: dict[str, Any], first: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, Any] | None:
    """Remove the first name that has a value; return the name and the value."""
    for name in (*first, *names) if first else names:
        value = fields.get(name)
        if value and name != RESPONSE and not is_nested_set(value):
            del fields[name]
            return name, value
    return None


def _from_token_response(fields: Mapping[str, Any]) -> Any:
    """Return the access token in the last token response, which oauth2client keeps."""
    response = fields.get(RESPONSE)
    return response.get("access_token") or None if isinstance(response, dict) else None


def _pop_expiry(fields: dict[str, Any], *, first: str | None) -> tuple[float | None, str | None]:
    """Remove and return the expiry of the access token; also return a note if it is not valid.

    Args:
        fields: The fields of the account.
        first: The name to look for first, or None.
    """
    malformed = None
    for name in EXPIRY if first is None else (first, *EXPIRY):
        if fields.get(name) is None:
            continue
        expires_at = parse_timestamp(fields[name], naive=EXPIRY[name])
        if expires_at is not None:
            del fields[name]
            return expires_at, None
        malformed = malformed or name
    lifetime = parse_seconds(fields.get("expires_in"))
    obtained_at = obtained_at_of(fields)
    if lifetime is not None and obtained_at is not None:
        return clamp_to_calendar(obtained_at + lifetime), None
    if malformed is not None:
        return _EXPIRED, f"{malformed} is not a valid timestamp; the token counts as expired"
    # `expires_in` alone does not determine the expiry, as the age of the token is unknown.
    return (None if fields.get("expires_in") is None else _EXPIRED), None


def obtained_at_of(fields: Mapping[str, Any]) -> float | None:
    """Return when the token in a file was obtained, in UTC epoch seconds, or None if unknown."""
    name = _obtained_name(fields)
    return None if name is None else parse_timestamp(fields[name])


def _obtained_name(fields: Mapping[str, Any]) -> str | None:
    """Return the field that says when the token was obtained."""
    for name in OBTAINED:
        if name in fields and parse_timestamp(fields[name]) is not None:
            return name
    return None


def _is_unchanged(
    export: Mapping[str, Any], exported: float | None, data: Mapping[str, Any], shape: FileShape
) -> bool:
    """Return whether the expiry is the exported one: no program has changed the file since.

    The text is compared, since the instant that it means depends on the local time zone.
    """
    if _WRITTEN in export:
        name, written = shape.expiry_name, export[_WRITTEN]
        if name in data and type(data[name]) is type(written) and data[name] == written:
            return True
        found = parse_timestamp(data.get(name), naive=EXPIRY[name])
        return found is not None and exported is not None and abs(exported - found) < 1
    if exported is None:
        return data.get("expires_at") is None
    expected, written = local_iso(exported), data.get("expires_at", "")
    if expected is None or written is None:
        return expected is written
    found = parse_timestamp(written)
    return found is not None and (abs(exported - found) < 1 or expected == local_iso(found))


def _possible_stems(export: Mapping[str, Any], shape: FileShape) -> set[str]:
    """Return the possible file names of an exported account, on any file system."""
    name = str(export.get("account_name"))
    stems = {file_stem(name, case_sensitive=sensitive) for sensitive in (True, False)}
    stems.add(hashed_stem(name))
    return stems if shape.name is None else {*stems, shape.name.removesuffix(".json")}


def _valid_name(name: str) -> str | None:
    try:
        return normalize_account_name(name)
    except InvalidTokenError:
        return None


def _is_list_of_keys(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(key, (str, int)) for key in value)


def _empty(paths: list[tuple[Any, ...]]) -> Any:
    """Return a document with nothing but the places of token sets."""
    document: Any = None
    for path in paths:
        document = put(document, path, None)
    return document

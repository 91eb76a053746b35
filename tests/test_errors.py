from __future__ import annotations

import copy
import inspect
import pickle
import re
import traceback
from typing import Any

import pytest

from tokenstore import errors
from tokenstore.errors import (
    InvalidTokenError,
    StorageError,
    TokenPersistError,
    TokenRefreshError,
    TokenStoreError,
    TransientRefreshError,
)

SECRET = "rt-canary-5b1d"


def tree(cls: type[TokenStoreError]) -> list[type[TokenStoreError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


CLASSES = tree(TokenStoreError)
REFRESH_ERRORS = tree(TokenRefreshError)
STORAGE_ERRORS = tree(StorageError)

RETRYABLE = {"TransientRefreshError"}

DETAILS = {
    "account_name": "alice",
    "provider": "google",
    "status_code": 400,
    "error": "invalid_grant",
    "error_description": "gone",
}


def example(cls: type[TokenStoreError]) -> TokenStoreError:
    """Return an error with every attribute that its class accepts."""
    accepted: dict[str, Any] = {
        **DETAILS,
        "message": "what happened",
        "field": "access_token",
        "reason": "is missing",
        "path": "/nowhere/tokens.db",
        "errno": 28,
        "tokens": {"refresh_token": SECRET},
        "retry_after": 7.5,
        "spent_at": 1_800_000_000.0,
        "maybe_spent": True,
    }
    parameters = inspect.signature(cls).parameters
    names = {*parameters, *(DETAILS if "details" in parameters else ())} - {"details"}
    return cls(**{name: accepted[name] for name in names})


def attributes(error: BaseException) -> dict[str, Any]:
    names = ("args", "field", "path", "errno", "retryable", "retry_after", "maybe_spent", *DETAILS)
    return {name: getattr(error, name) for name in names if hasattr(error, name)}


def documented_edges() -> set[tuple[str, str]]:
    """Return the pairs of class and parent in the tree of the module's docstring."""
    parents: dict[int, str] = {}
    edges = set()
    for line in (errors.__doc__ or "").splitlines():
        node = re.match(r"( *)- ``(\w+)``(?: \(an? ``(\w+)``\))?", line)
        if node is None:
            continue
        depth = len(node[1])
        parents[depth] = node[2]
        if depth:
            edges.add((node[2], parents[depth - 4]))
        if node[3]:
            edges.add((node[2], node[3]))
    return edges


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    classes = {
        (cls.__name__, base.__name__)
        for cls in CLASSES
        for base in cls.__bases__
        if cls is not TokenStoreError
    }

    assert documented_edges() == classes


def test_every_error_of_the_module_is_in_the_tree() -> None:
    defined = {c for c in vars(errors).values() if isinstance(c, type)}

    assert {c for c in defined if c.__module__ == errors.__name__} == set(CLASSES)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", CLASSES)
def test_an_unpickled_error_is_the_same_error(cls: type[TokenStoreError], protocol: int) -> None:
    error = example(cls)

    unpickled = pickle.loads(pickle.dumps(error, protocol))

    assert type(unpickled) is cls
    assert str(unpickled) == str(error)
    assert repr(unpickled) == repr(error)
    assert attributes(unpickled) == attributes(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_made_with_a_message_alone_can_be_pickled(cls: type[TokenStoreError]) -> None:
    error = example(cls) if issubclass(cls, InvalidTokenError) else cls("why")

    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_copied_error_is_the_same_error(cls: type[TokenStoreError]) -> None:
    error = example(cls)

    assert attributes(copy.copy(error)) == attributes(error)
    assert attributes(copy.deepcopy(error)) == attributes(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_notes_on_an_error_survive_pickling(cls: type[TokenStoreError]) -> None:
    error = example(cls)
    error.add_note("seen while importing")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen while importing"]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_is_shown_by_its_message_alone(cls: type[TokenStoreError]) -> None:
    error = example(cls)

    assert str(error) in {"what happened", "access_token: is missing"}
    assert repr(error) == f"{cls.__name__}({str(error)!r})"


def test_a_persist_error_carries_the_tokens_and_never_shows_them() -> None:
    error = TokenPersistError("disk full", "/x/tokens.db", tokens={"refresh_token": SECRET})

    assert error.tokens == {"refresh_token": SECRET}
    shown = "".join(traceback.format_exception(error))
    assert SECRET not in f"{error} {error!r} {error.args} {shown}"


def test_a_pickled_persist_error_leaves_its_tokens_behind() -> None:
    error = TokenPersistError("disk full", "/x/tokens.db", tokens={"refresh_token": SECRET})

    pickled = pickle.dumps(error)

    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).tokens is None
    assert error.tokens is not None


@pytest.mark.parametrize("cls", STORAGE_ERRORS)
def test_a_storage_error_is_an_os_error_with_its_path_and_number(cls: type[StorageError]) -> None:
    error = cls("no space left", "/x/tokens.db", errno=28)

    assert isinstance(error, OSError)
    assert (error.path, error.errno) == ("/x/tokens.db", 28)
    assert str(error) == "no space left"


@pytest.mark.parametrize("cls", STORAGE_ERRORS)
def test_a_storage_error_need_not_be_about_a_path(cls: type[StorageError]) -> None:
    error = cls("the database is busy")

    assert (error.path, error.errno) == (None, None)


def test_a_path_object_becomes_text(tmp_path: Any) -> None:
    assert StorageError("no", tmp_path).path == str(tmp_path)


def test_an_invalid_token_error_is_a_value_error_that_names_the_field() -> None:
    error = InvalidTokenError("expires_in", "expected a number")

    assert isinstance(error, ValueError)
    assert error.field == "expires_in"
    assert str(error) == "expires_in: expected a number"


@pytest.mark.parametrize("cls", REFRESH_ERRORS)
def test_only_transient_refresh_errors_are_retryable(cls: type[TokenRefreshError]) -> None:
    assert cls("why").retryable is (cls.__name__ in RETRYABLE)


@pytest.mark.parametrize("cls", REFRESH_ERRORS)
def test_the_details_of_a_refresh_error_default_to_none(cls: type[TokenRefreshError]) -> None:
    error = cls("why")

    assert {name: getattr(error, name) for name in DETAILS} == dict.fromkeys(DETAILS)


def test_a_transient_error_says_how_long_to_wait_and_whether_the_token_may_be_spent() -> None:
    error = TransientRefreshError("busy", retry_after=30.0, maybe_spent=True)
    default = TransientRefreshError("busy")

    assert (error.retry_after, error.maybe_spent) == (30.0, True)
    assert (default.retry_after, default.maybe_spent) == (None, False)

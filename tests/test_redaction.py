"""No error has a secret in the variables of its frames, and no public callable is forgotten."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import re
import traceback
from contextlib import aclosing, closing, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest

import tokenstore
from tests.helpers import protected as sample
from tests.helpers.canary import chain
from tests.helpers.protected import Failure, Things
from tests.helpers.refreshes import SOON
from tokenstore import integrations
from tokenstore.redaction import Redactor, clear_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

SECRET = "CANARY"


def frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of an error and of its causes, except those of this file."""
    for cause in chain(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_code.co_filename != __file__:
                yield frame


def leaks(error: BaseException) -> list[str]:
    """Return the variables in which an error takes a secret along."""
    return [
        f"{frame.f_code.co_qualname}: {name}"
        for frame in frames(error)
        for name, value in frame.f_locals.items()
        if SECRET in repr(value)
    ]


def variables(error: BaseException) -> dict[str, dict[str, Any]]:
    """Return the variables of each frame of an error, by the function's name."""
    return {
        frame.f_code.co_name: dict(frame.f_locals)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    }


# -- every kind of function -----------------------------------------------------------------------


async def iterate(items: Any) -> None:
    async for _ in items:
        pass


def enter(manager: Any) -> None:
    with manager:
        pass


async def enter_async(manager: Any) -> None:
    async with manager:
        pass


def in_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    asyncio.run(main())


FAILING: dict[str, Callable[[], object]] = {
    "function": lambda: sample.function(SECRET),
    "keyword": lambda: sample.function(secret=SECRET),
    "generator": lambda: list(sample.generator(SECRET, 3)),
    "returned iterator": lambda: list(sample.iterator(SECRET, 3)),
    "coroutine": lambda: asyncio.run(sample.coroutine(SECRET)),
    "async generator": lambda: in_loop(lambda: iterate(sample.async_generator(SECRET, 3))),
    "returned async iterator": lambda: in_loop(lambda: iterate(sample.async_iterator(SECRET))),
    "context manager": lambda: enter(sample.context(SECRET)),
    "async context manager": lambda: in_loop(lambda: enter_async(sample.async_context(SECRET))),
    "constructor": lambda: Things(f"bad {SECRET}"),
    "call": lambda: Things(SECRET)(SECRET),
    "with": lambda: enter(Things(SECRET)),
    "async with": lambda: in_loop(lambda: enter_async(Things(SECRET))),
    "method": lambda: Things(SECRET).method(SECRET),
    "inherited method": lambda: Things(SECRET).inherited(SECRET),
    "property": lambda: Things(SECRET).value,
    "setter": lambda: setattr(Things(SECRET), "value", SECRET),
    "class method": lambda: Things.of(SECRET),
    "static method": lambda: Things.static(SECRET),
    "callback": lambda: Things(SECRET).callback()(SECRET),
}


@pytest.mark.parametrize("fail", FAILING.values(), ids=FAILING)
def test_an_error_keeps_its_lines_and_loses_its_variables(fail: Callable[[], object]) -> None:
    with pytest.raises(Failure) as caught:
        fail()

    assert variables(caught.value)["_deep"] == {}
    assert isinstance(caught.value.__context__, KeyError)
    assert leaks(caught.value) == []
    assert "raise Failure from None" in "".join(traceback.format_exception(caught.value))


def test_wrong_arguments_leave_nothing_in_the_frame() -> None:
    calls: list[Callable[..., Any]] = [
        sample.function,
        lambda *args: next(sample.generator(*args)),
        lambda *args: in_loop(lambda: sample.coroutine(*args)),
        lambda *args: in_loop(lambda: iterate(sample.async_generator(*args))),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="positional argument") as caught:
            call(SECRET, SECRET, SECRET)
        assert leaks(caught.value) == []


def test_an_interrupt_loses_its_variables_too() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        sample.interrupted(SECRET)

    assert variables(caught.value)["interrupted"] == {}


def test_an_exempt_function_keeps_its_variables() -> None:
    with pytest.raises(Failure) as caught:
        sample.exempt(SECRET)

    assert "exempt: secret" in leaks(caught.value)


def test_success_and_appearance_are_unchanged() -> None:
    assert sample.function("a", good="b") == "ab"
    assert sample.function.__name__ == "function"
    assert sample.function.__doc__ == "Fail unless *good* is given."
    assert [*inspect.signature(sample.function).parameters] == ["secret", "good"]
    assert inspect.iscoroutinefunction(sample.coroutine)
    assert inspect.isgeneratorfunction(sample.generator)
    assert inspect.isasyncgenfunction(sample.async_generator)
    assert not inspect.isgeneratorfunction(sample.iterator)
    assert vars(Things)["value"].__doc__ == "What fails."


def test_a_function_is_wrapped_once() -> None:
    wrapped = inspect.unwrap(sample.function, stop=lambda f: not hasattr(f, "__protected__"))
    assert sample.function.__wrapped__ is wrapped  # type: ignore[attr-defined]


# -- generators -----------------------------------------------------------------------------------


def test_a_generator_gets_what_is_sent_and_thrown_in() -> None:
    generator, error = sample.echo(SECRET), KeyError()

    assert next(generator) == len(SECRET)
    assert generator.send(1) == 1
    assert generator.throw(error) is error
    with pytest.raises(StopIteration) as end:
        generator.send("end")
    assert end.value.value == "ended"


def test_an_async_generator_gets_what_is_sent_and_thrown_in() -> None:
    async def main() -> None:
        generator, error = sample.async_echo(SECRET), KeyError()
        assert await anext(generator) == len(SECRET)
        assert await generator.asend(1) == 1
        assert await generator.athrow(error) is error
        with pytest.raises(StopAsyncIteration):
            await generator.asend("end")

    asyncio.run(main())


def test_a_generator_that_is_left_is_closed() -> None:
    closed: list[bool] = []

    with closing(sample.closing(closed)) as iterator:  # type: ignore[type-var]
        assert next(iterator) == 1

    assert closed == [True]


def test_an_async_generator_that_is_left_is_closed() -> None:
    async def main() -> None:
        async with aclosing(sample.async_echo(SECRET)) as generator:
            await anext(generator)
        with pytest.raises(StopAsyncIteration):
            await anext(generator)

    asyncio.run(main())


# -- what is not ours to clear --------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    """Return an error that came through a frame with a variable."""

    def fail() -> None:
        mine = "kept"
        assert mine
        raise error

    with suppress(type(error)):
        fail()
    return error


def handling(call: Callable[[], object]) -> None:
    """Make a call while another error is being handled."""
    try:
        raise raised(ValueError())
    except ValueError:
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample.function(SECRET),
        lambda: list(sample.generator(SECRET)),
        lambda: asyncio.run(sample.coroutine(SECRET)),
        lambda: in_loop(lambda: iterate(sample.async_generator(SECRET))),
    ],
    ids=["function", "generator", "coroutine", "async generator"],
)
def test_an_error_that_the_caller_is_handling_is_left_alone(call: Callable[[], object]) -> None:
    with pytest.raises(Failure) as caught:
        handling(call)

    [outer] = [cause for cause in chain(caught.value) if isinstance(cause, ValueError)]
    assert variables(outer)["fail"]["mine"] == "kept"


def test_an_error_that_is_thrown_in_keeps_the_frames_it_brings() -> None:
    error = raised(ZeroDivisionError(SECRET))
    generator = sample.echo(SECRET)
    next(generator)

    with pytest.raises(ZeroDivisionError) as caught:
        generator.throw(error)

    assert variables(caught.value)["fail"]["mine"] == "kept"
    assert variables(caught.value)["echo"] == {}


def test_an_error_that_is_thrown_into_an_async_generator_keeps_the_frames_it_brings() -> None:
    async def main() -> None:
        generator = sample.async_echo(SECRET)
        await anext(generator)
        await generator.athrow(raised(ZeroDivisionError()))

    with pytest.raises(ZeroDivisionError) as caught:
        asyncio.run(main())

    assert variables(caught.value)["fail"]["mine"] == "kept"
    assert variables(caught.value)["async_echo"] == {}


def test_a_suspended_generator_can_continue() -> None:
    def waiting() -> Iterator[object]:
        try:
            sample.function("mine")
        except Failure as error:
            yield error
        yield 2

    theirs = waiting()
    error = next(theirs)
    assert isinstance(error, Failure)

    with pytest.raises(Failure):
        sample.chained(error)

    assert list(theirs) == [2]


def test_a_suspended_coroutine_that_shares_an_error_can_continue() -> None:
    async def main() -> str:
        failed = Failure()
        handled = asyncio.Event()

        async def first() -> str:
            try:
                raise failed
            except Failure:
                await handled.wait()
            return "continued"

        task = asyncio.create_task(first())
        await asyncio.sleep(0)
        with pytest.raises(Failure):
            sample.chained(failed)
        handled.set()
        return await asyncio.wait_for(task, SOON)

    assert asyncio.run(main()) == "continued"


def test_errors_that_refer_to_each_other_are_cleared() -> None:
    first, second = raised(Failure()), raised(Failure())
    first.__cause__, second.__context__ = second, first

    clear_frames(first)

    assert variables(first)["fail"] == variables(second)["fail"] == {}


# -- every public callable ------------------------------------------------------------------------

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"
NOT_OURS = {"tokenstore", "tokenstore.testing"}  # the package itself; a server for tests
FAILS_NEVER = {
    "AccessToken.to_dict",
    "AsyncTokenManager.__aenter__",
    "Provider.auth_method",
    "Provider.callback_uri",
    "TokenManager.__enter__",
    "TokenRepository.__enter__",
    "migrate.scripts",
}


def public_objects() -> Iterator[tuple[str, Any]]:
    """Yield what the package exports, and what its public modules define."""
    for name in tokenstore.__all__:
        yield name, getattr(tokenstore, name)
    documented = re.findall(r"(?m)^::: (tokenstore[\w.]*)\.\w+", REFERENCE.read_text("utf-8"))
    modules = {*documented} - NOT_OURS
    modules |= {
        module.name
        for module in pkgutil.iter_modules(integrations.__path__, "tokenstore.integrations.")
    }
    for module in sorted(modules):
        for name, value in vars(importlib.import_module(module)).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module:
                yield f"{module.removeprefix('tokenstore.')}.{name}", value


def is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def shows_all(cls: type) -> bool:
    """Return whether a class is a frozen dataclass that hides no field, so has no secret."""
    frozen = is_dataclass(cls) and vars(cls)["__dataclass_params__"].frozen
    return frozen and all(field.repr for field in fields(cls))


def callables() -> dict[str, tuple[type | None, FunctionType]]:
    """Return every public function and method: its class, if any, and the function."""
    found: dict[str, tuple[type | None, FunctionType]] = {}
    for label, value in public_objects():
        if isinstance(value, FunctionType):
            found[label] = None, value
        if not isinstance(value, type) or issubclass(value, BaseException) or shows_all(value):
            continue
        for cls in value.__mro__:
            if cls.__module__.startswith("tokenstore"):
                for name, attribute in filter(lambda item: is_public(item[0]), vars(cls).items()):
                    for function in functions_of(attribute):
                        if not is_generated(cls, function):
                            found[f"{label}.{name}"] = value, function
    return found


def is_generated(cls: type, function: FunctionType) -> bool:
    """Return whether ``@dataclass`` made a method: it cannot fail and is not written anywhere."""
    written = inspect.unwrap(function).__code__.co_filename
    return is_dataclass(cls) and written != inspect.getsourcefile(cls)


def functions_of(attribute: object) -> list[FunctionType]:
    if isinstance(attribute, property):
        accessors = attribute.fget, attribute.fset, attribute.fdel
        return [function for function in accessors if isinstance(function, FunctionType)]
    if isinstance(attribute, (classmethod, staticmethod)):
        attribute = attribute.__func__
    if isinstance(attribute, FunctionType):
        return [attribute]
    assert not callable(attribute), attribute
    return []


CALLABLES = callables()


def test_the_walk_finds_what_is_public() -> None:
    assert {
        "TokenManager.save_tokens",
        "AsyncTokenManager.refresh_all",
        "TokenRepository.transaction",
        "Provider.basic_credentials",
        "integrations.httpx.TokenAuth.async_auth_flow",
        "integrations.requests.TokenAuth.__call__",
        "integrations.google.Credentials.refresh",
        "integrations.mail.xoauth2",
        "jsonfiles.import_accounts",
        "migrate.upgrade",
        "doctor.examine",
    } <= {*CALLABLES}


def test_every_public_callable_is_protected_but_for_the_exemptions() -> None:
    bare = {name for name, (_, call) in CALLABLES.items() if not hasattr(call, "__protected__")}

    assert bare == {"TokenManager.get_valid_token"}
    assert all(vars(CALLABLES[name][1])["__unprotected__"] for name in bare)


class Hostile:
    """A secret that fails wherever it is used."""

    def __repr__(self) -> str:
        return SECRET

    def _fail(self, *_: object) -> Any:
        raise Failure(SECRET)

    __getattr__ = __call__ = __iter__ = __len__ = __bool__ = __fspath__ = __str__ = _fail
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _fail
    __getitem__ = __contains__ = __enter__ = _fail


def broken(cls: type) -> object:
    """Return an instance without a state, whose methods fail sooner or later."""
    made: object = object.__new__(cls)
    if is_dataclass(cls):
        for field in fields(cls):
            object.__setattr__(made, field.name, Hostile())
    return made


def arguments(
    call: FunctionType, secret: object, *, bound: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Return the secret for each parameter of a function, except for ``self``."""
    parameters = list(inspect.signature(call).parameters.values())[bound:]
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    count = len([p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}])
    return [secret] * count, dict.fromkeys(by_name, secret)


def outcome(call: FunctionType, cls: type | None, secret: object) -> BaseException | None:
    """Call a function with secrets for arguments, use what it returns, and return the error."""

    async def use_async(result: Any) -> None:
        await (anext(result) if inspect.isasyncgen(result) else result)

    bound = cls is not None
    args, kwargs = arguments(call, secret, bound=bound)
    try:
        result = call(*([broken(cls)] if cls is not None else []), *args, **kwargs)
        if inspect.isasyncgen(result) or inspect.iscoroutine(result):
            asyncio.run(use_async(result))
        elif inspect.isgenerator(result):
            next(result)
        elif type(result).__name__ == "_GeneratorContextManager":
            enter(result)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        return error
    return None


SECRETS: dict[str, Callable[[], object]] = {
    "hostile": Hostile,
    "text": lambda: f"{SECRET}\n",
    "tokens": lambda: {"access_token": f"{SECRET}\n", "refresh_token": SECRET, "expires_in": "x"},
    "password": lambda: f"postgresql://user:{SECRET}@127.0.0.1:1/db?schema=Bad",
}


@pytest.mark.parametrize("name", CALLABLES)
def test_no_error_of_a_public_callable_has_a_secret_in_a_frame(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cls, call = CALLABLES[name]
    errors = [outcome(call, cls, make()) for make in SECRETS.values()]

    assert any(error is not None for error in errors) is (name not in FAILS_NEVER)
    for error in filter(None, errors):
        assert leaks(error) == []


# -- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing secret", "nothing secret"),
        ("it was s3cr3t/t0ken!", "it was [redacted]"),
        ("it was S3CR3T%2FT0KEN%21", "it was [redacted]"),
        ("it was s3cr3t%252Ft0ken", "[redacted]"),
        ("two\nlines\x1b[2J", "two lines [2J"),
        ("", None),
        (None, None),
        (["s3cr3t/t0ken!"], None),
    ],
)
def test_a_message_is_one_line_without_secrets(text: object, shown: str | None) -> None:
    assert Redactor(["", "s3cr3t/t0ken!"]).redact(text, 100) == shown


def test_a_message_is_cut_to_its_limit() -> None:
    assert Redactor([]).redact("a" * 200, 100) == "a" * 100


def test_a_short_secret_is_looked_for_as_it_is_and_not_in_other_words() -> None:
    redactor = Redactor(["p-i"])

    assert redactor.redact("the p-i is not in api", 100) == "the [redacted] is not in api"

"""Standard streams that may be closed, full, or unable to encode a character.

A command does its work even if its output cannot be written, and then exits with 1.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer


def prepare() -> None:
    """Replace the standard streams of this process; call it before any file is opened.

    A closed stream gets its descriptor back, so that no file is opened under its number: whatever
    is printed would be written to that file.
    """
    if sys.stdin is None:
        _stand_in(os.O_WRONLY)
    sys.stdout = _writer(sys.stdout, _report)
    sys.stderr = _writer(sys.stderr, lambda _: None)


def output_is_lost() -> bool:
    """Return whether something could not be written to standard output."""
    return isinstance(sys.stdout, _Writer) and sys.stdout.descriptor.has_failed


def _writer(stream: TextIO | None, report: Callable[[OSError], None]) -> TextIO:
    if stream is None:
        return _Writer(_Descriptor(_stand_in(os.O_RDONLY), report))
    try:
        descriptor = _Descriptor(stream.fileno(), report)
    except OSError:  # it is not a file: this process is not the command's own
        return stream
    return _Writer(descriptor, stream.encoding, line_buffering=bool(stream.line_buffering))


def _stand_in(mode: int) -> int:
    """Return a descriptor with which the stream's operation fails; the lowest that is free."""
    descriptor = os.open(os.devnull, mode)
    os.set_inheritable(descriptor, True)  # noqa: FBT003 - of the system's function
    return descriptor


def _report(error: OSError) -> None:
    if error.errno == errno.EPIPE:  # the reader has seen enough
        return
    reason = "it is closed" if error.errno == errno.EBADF else error.strerror
    message = f"tokenstore: cannot write the output: {reason}"
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - without loading click


class _Descriptor(io.FileIO):
    """A descriptor to write to. An error is reported once, and what it concerns is dropped.

    Attributes:
        has_failed: Whether something could not be written.
    """

    def __init__(self, descriptor: int, report: Callable[[OSError], None]) -> None:
        # Its mode may be another one: then every write is an error.
        super().__init__(descriptor, "w", closefd=False)
        self.has_failed = False
        self._report_error = report

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (written := super().write(data)) is None:  # it does not block, and is full
                import select

                select.select([], [self], [])
        except OSError as error:
            if not self.has_failed:
                self.has_failed = True
                self._report_error(error)
            return memoryview(data).nbytes
        return written


class _Writer(io.TextIOWrapper):
    """A text stream that escapes what its encoding lacks, such as a lone surrogate.

    Attributes:
        descriptor: The descriptor that it writes to.
    """

    def __init__(
        self, descriptor: _Descriptor, encoding: str = "utf-8", *, line_buffering: bool = True
    ) -> None:
        self.descriptor = descriptor
        super().__init__(
            io.BufferedWriter(descriptor),
            encoding,
            "backslashreplace",
            line_buffering=line_buffering,
        )

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding; for ASCII by another name, or click would write UTF-8 instead."""
        found = super().encoding
        return "ascii with escapes" if codecs.lookup(found).name == "ascii" else found

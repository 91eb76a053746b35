"""The ``tokenstore`` command."""

import errno
import gc
import os
import sys

_GC_THRESHOLD = 100_000  # new objects before the garbage collector runs; Python's default is 700


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    # Imported modules live until the process ends. Collecting them repeatedly, and once more at
    # exit, would take a third of a short command's time.
    gc.set_threshold(_GC_THRESHOLD)
    try:
        from tokenstore.cli.app import run

        sys.exit(_flush(run(sys.argv[1:])))
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("tokenstore: the command requires an extra; run: pip install 'tokenstore[cli]'")
    finally:
        gc.freeze()


def _flush(code: int) -> int:
    """Write what standard output still buffers; return the exit code, 1 if that fails.

    Python would do so at exit, print a traceback if it fails, and exit with 120.
    """
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        # What could not be written stays in the buffer, and Python flushes once more at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if code == 0 and error.errno != errno.EPIPE:  # otherwise the command has reported it
            message = f"tokenstore: cannot write the output: {error.strerror}"
            print(message, file=sys.stderr)  # noqa: T201 - without loading click
        return 1
    return code

"""The ``tokenstore`` command."""

import gc
import sys

from tokenstore.cli import streams

_GC_THRESHOLD = 100_000  # new objects before the garbage collector runs; Python's default is 700


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    # Imported modules live until the process ends. Collecting them repeatedly, and once more at
    # exit, would take a third of a short command's time.
    gc.set_threshold(_GC_THRESHOLD)
    streams.prepare()
    try:
        from tokenstore.cli.app import run

        code = run(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(1 if streams.output_is_lost() else code)
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("tokenstore: the command requires an extra; run: pip install 'tokenstore[cli]'")
    finally:
        gc.freeze()

"""The ``tokenstore`` command."""

import gc
import sys

_GARBAGE = 100_000  # new objects after which to look for garbage; Python's own default is 700


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    # What a command imports lives as long as it does. To look for garbage among that, at first
    # again and again and once more at the end, would take a third of a short command's time.
    gc.set_threshold(_GARBAGE)
    try:
        from tokenstore.cli.app import run

        sys.exit(run(sys.argv[1:]))
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("tokenstore: the command needs its extra; run: pip install 'tokenstore[cli]'")
    finally:
        gc.freeze()

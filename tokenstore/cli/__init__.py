"""The ``tokenstore`` command."""

import sys


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    try:
        from tokenstore.cli.app import run

        sys.exit(run(sys.argv[1:]))
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("tokenstore: the command needs its extra; run: pip install 'tokenstore[cli]'")

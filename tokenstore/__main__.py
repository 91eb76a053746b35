"""``python -m tokenstore`` is the ``tokenstore`` command."""

from tokenstore.cli import main

main()

"""Token files and storages of other programs."""

"""Reads the token files and token storages of other programs."""

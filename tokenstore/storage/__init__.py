"""Stores accounts: the repository, and the database backends below it."""

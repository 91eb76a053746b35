"""Accounts in a SQLite file."""

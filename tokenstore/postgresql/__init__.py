"""Accounts in PostgreSQL, for applications that outgrow one machine."""

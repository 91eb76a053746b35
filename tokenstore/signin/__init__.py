"""Signing in and out: by browser, by device code, and the revocation of tokens."""

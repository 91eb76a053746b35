"""An account at its provider: sign-in, refresh, sign-out."""

"""The ways to sign a user in."""

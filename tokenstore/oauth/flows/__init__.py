"""The flows that sign a user in."""

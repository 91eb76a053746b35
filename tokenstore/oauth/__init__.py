"""Requests to a provider, and the meaning of its responses."""

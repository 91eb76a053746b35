"""The conformance suite of a storage backend: each test runs on every backend, and all must pass.

The fixture ``database`` hands out an empty store of each; to run the suite on another backend, add
it to ``ENGINES`` in tests/conftest.py.
"""

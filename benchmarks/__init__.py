"""Benchmarks of tokenstore against lower bounds and other libraries: ``make bench``."""

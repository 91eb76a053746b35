"""Accounts of the store in other libraries, one module for each; see the modules."""

"""Values without I/O: token sets, timestamps, accounts, failures, expiry."""

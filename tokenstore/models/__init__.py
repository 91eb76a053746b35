"""Values: token sets, accounts, failures, expiry. No I/O."""

"""Where accounts are kept: the repository, and the databases below it."""

"""Use stored accounts in other libraries: one module per library."""

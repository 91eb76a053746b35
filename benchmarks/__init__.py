"""tokenstore beside the least that its work takes, and beside other libraries: ``make bench``."""

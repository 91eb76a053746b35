"""What is said to a provider, and what its responses mean."""

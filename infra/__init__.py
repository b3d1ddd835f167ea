"""How the tiers are put together and run: the command line and the local stack."""

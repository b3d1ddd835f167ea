"""HTTP in front of the pool: auth, variants, cache and dispatch.  Never loads an engine."""

"""One engine's queue: who may wait, who runs next, and the runs themselves."""

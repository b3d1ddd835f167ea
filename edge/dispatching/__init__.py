"""A call's way to a worker and back: who takes it, and what happens when a worker is lost."""

"""Manifests, endpoint documents, the stores that hold them, and how they reach a node."""

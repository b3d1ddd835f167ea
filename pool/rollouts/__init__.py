"""Rollouts: what is counted of both arms, what follows from it, and who carries that out."""

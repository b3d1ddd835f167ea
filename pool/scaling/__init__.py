"""How many replicas of which version are to be warm, and when: pure policies.

The controller, the simulator and the tests run the same objects.
"""

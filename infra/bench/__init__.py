"""`tidepool bench`: measures this machine's server CPU per request against peers.

The method is that of one rule: what is compared is measured in turn, in the same
minutes, on the same machine, and the figure is CPU time of all server processes per
request, because on a busy machine requests per second say more about the neighbours.
Nothing in this package loads a peer's library; peers are processes of their own.
"""

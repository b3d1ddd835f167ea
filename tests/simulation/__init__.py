"""The real shells in virtual time: no sockets, no threads that run beside each other, no chance.

`world.simulate` runs a scenario.  What blocks, waits or is random is replaced where it meets the
system, and nowhere else:

    loop.py       the event loop: its clock jumps; what belongs to a stopped process waits
    processes.py  processes of the simulation: start, SIGTERM, SIGSTOP, SIGKILL, exit
    network.py    what is dialled: delays, cuts, pieces; order is kept on a connection only
    threads.py    threads, one at a time, whose sleeping is virtual too
    system.py     the clocks, `os` and chance as the code sees them
    store.py      a registry that is slow, or away
    engine.py     an engine whose loads and runs take virtual time, and a ledger of its runs
    fleet.py      controllers, sync processes, workers and edges, put together
    front.py      edges whose calls take the whole way, from the key to the answer

`life.live` lets a seed live, and `python -m tests.simulation` as many as one likes:

    options.py     what a seed stands for: a fleet, what is asked of it, what goes wrong when
    faults.py      carries that out
    observed.py    looks into the shells meanwhile
    invariants.py  what holds of every life

The same seed gives the same life, to the last line of the log.
"""

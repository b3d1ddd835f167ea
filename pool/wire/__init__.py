"""What edges, workers and the controller say to each other, and how the bytes are framed.

`frames` cuts a byte stream into frames, `data` and `control` hold the messages, `handshake`
proves the fleet secret over TCP, `peer` is the one asyncio connection that all of them use.
Nothing here decides anything.
"""

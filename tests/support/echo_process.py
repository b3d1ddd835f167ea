"""A small process for tests of the supervisor: says who it is to everybody who dials it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from types import FrameType

from registry_sync.supervised import say_draining, say_ready

config = json.loads(sys.argv[1])


def _end(number: int, frame: FrameType | None) -> None:
    listener.close()
    say_draining(config["notice_fd"])
    if config["drain_s"]:
        time.sleep(config["drain_s"])
    os._exit(0)


if __name__ == "__main__":
    listener = socket.socket(fileno=config["listen_fds"][0])
    listener.setblocking(True)
    if config["dies"]:
        listener.accept()
        sys.exit(3)
    signal.signal(signal.SIGTERM, _end)
    say_ready(config["notice_fd"])
    why = "for a call" if config["is_for_call"] else "wanted"
    while True:
        caller, _ = listener.accept()
        with caller:
            caller.sendall(f"{os.getpid()} {why}\n".encode())

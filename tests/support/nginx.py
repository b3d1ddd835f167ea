"""A real nginx on loopback that treats its connections as a balancer of AWS (ALB) does.

It closes what was silent for its idle time-out, on both sides, and sends no request twice.  Each
caller has a pool of its own towards the server, so that its pauses are that connection's.  It dies
with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.stack import free_port
from tests.support.stack import until

START_S_MAX = 20.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def executable() -> str | None:
    """Return nginx; None: it is not on this machine."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def is_there() -> bool:
    """Tell whether this machine has nginx, which no package index has."""
    return executable() is not None


@contextlib.contextmanager
def balancer(folder: Path, idle_s: float, targets: Sequence[int]) -> Iterator[int]:
    """Run nginx: what is asked for below ``/N/`` goes to the loopback port ``targets[N]``.

    Returns:
        The port at which it listens.
    """
    nginx = executable()
    assert nginx is not None
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(_config(folder, port, round(idle_s * 1000), targets))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [nginx, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_tie,
        )
    try:

        def listens() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens, START_S_MAX, "nginx listens")
        yield port
    finally:
        process.kill()
        process.wait()


def _config(folder: Path, port: int, idle_ms: int, targets: Sequence[int]) -> str:
    upstreams = "\n".join(
        f"upstream u{at} {{ server 127.0.0.1:{target}; keepalive 1; keepalive_timeout {idle_ms}ms; "
        "keepalive_requests 1000000; }"
        for at, target in enumerate(targets)
    )
    locations = "\n".join(
        f"location /{at}/ {{ proxy_pass http://u{at}/; }}" for at in range(len(targets))
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    return f"""
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    {temporary}
    keepalive_timeout {idle_ms}ms;
    keepalive_requests 1000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_next_upstream off;
    {upstreams}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        {locations}
    }}
}}
"""


def _tie() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

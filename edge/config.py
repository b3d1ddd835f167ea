"""What an edge process is told when it starts: JSON in argv[1], checked once."""

from __future__ import annotations

from typing import Literal

import msgspec

AccessLogMode = Literal["on", "off", "sampled"]

BODIES_BYTES_MAX = 512 << 20


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one edge process."""

    id: str  # unique in the fleet and stable over restarts of the process
    data: str
    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8002
    registry: str = ""  # only to find the leader where `controller` is empty
    controller: str = ""  # "unix:/path" or "tcp://host:port"; empty: read the leader record
    sends_traces: bool = False  # as OpenTelemetry's environment says
    body_bytes_max: int = 64 << 20
    body_bytes_in_flight_max: int = BODIES_BYTES_MAX  # of all requests of this process together
    cache_bytes_max: int = 256 << 20
    cache_disk_bytes_max: int = 1 << 30  # shared by the node's edges; 0: no answers on disk
    # From one answer, or the connection's start, to the whole head of the next request.  Behind a
    # balancer it must exceed the time for which that keeps idle connections.
    keep_alive_s: float = 5.0
    body_read_timeout_ms: int = 10000
    drain_s_max: float = 30.0
    lame_duck_s: float = 0.0
    listen_fds: tuple[int, ...] = ()  # the sockets of both ports, kept by the supervisor
    notice_fd: int = -1  # where to say that we drain
    require_signed: str = ""  # file of trusted keys; empty: manifests need no signature
    tls_cert: str = ""  # of both ports: PEM files, read again when they have changed; empty: HTTP
    tls_key: str = ""
    log_level: str = "info"
    access_log: AccessLogMode = "sampled"
    access_log_lines_per_s: float = 20.0  # each of what was fine, refused, and failed or slow
    access_log_slow_ms: int = 1000
    # What devices cost, by name ("nvidia-l4", "cpu", or "gpu" for any other); none: not counted.
    device_usd_per_h: tuple[tuple[str, float], ...] = ()

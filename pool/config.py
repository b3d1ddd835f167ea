"""What the processes of the pool are told when they start: JSON in argv[1], checked once."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from pool.recycling import SLACK_BYTES
from registry_sync.documents import EngineWish
from registry_sync.local_plans import BYTES_MAX_DEFAULT
from registry_sync.plans import NOT_RUN, GateReport

# Environment: whoever places nodes says which one this is.
NODE_ID: Final = "TIDEPOOL_NODE_ID"


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one worker process (one device slot)."""

    id: str  # unique in the fleet and stable over restarts of the process
    data: str  # the node's data folder
    listen: str  # where edges dial: "unix:/path" or "tcp://host:port"
    advertise: str = ""  # what edges are told to dial; empty: the same as `listen`
    controller: str = ""  # "unix:/path" or "tcp://host:port"; empty: ask sync for the leader
    sync_socket: str  # the node's sync daemon
    threads: int = 0  # intra-op threads of one engine; 0 lets the engine choose
    engines: tuple[str, ...] = ()  # further engines, each "module:Class"
    device: str = ""  # "cpu", "cuda:0", …; empty: the first GPU, else the CPU
    plans_bytes_max: int = BYTES_MAX_DEFAULT  # of built plans on this node
    build_alone_s: float = 15.0  # without a controller, before a plan is built that is missing
    queue_bytes_max: int = 512 << 20  # tensors that may wait in this process
    drain_s_max: float = 30.0
    lame_duck_s: float = 0.0
    listen_fds: tuple[int, ...] = ()  # the socket of `listen`, kept by the supervisor
    notice_fd: int = -1  # where to say that we drain, or want a successor
    go_fd: int = -1  # of an heir: its end says that it may take over
    slack_bytes: int = SLACK_BYTES  # memory that nothing accounts for, before it is replaced
    memory_bytes_max: int = 0  # for engines, on the device; 0: what there is
    asked_s: float = (
        0.0  # when a process was asked for, by the machine's monotonic clock; 0: unknown
    )
    is_for_call: bool = False  # it is started because a call came
    is_fallback: bool = False  # it serves only while no other worker has what is called
    require_signed: str = ""  # file of trusted keys; empty: manifests need no signature
    sends_traces: bool = False  # as OpenTelemetry's environment says
    log_level: str = "info"


class ControllerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one controller process."""

    id: str  # the node's id: a successor with the same id takes over at once
    data: str
    registry: str  # s3://bucket/prefix, file:///path or a path
    listen: tuple[str, ...]  # "unix:/path" and/or "tcp://host:port"
    advertise: str = ""  # the url in the leader record; empty: the last of `listen`
    sync_interval_s: float = 0.0  # 0: 1 s for a directory, 10 s for S3
    notifications: str = ""  # URL of the queue that the bucket tells of changes; empty: none
    workers_expected: int = 0  # ready only once so many workers have registered
    time_scale: float = 1.0  # rehearsals: the scaling policies see time pass so many times faster
    require_signed: str = ""  # file of trusted keys; empty: manifests need no signature
    log_level: str = "info"


class BuilderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a builder process is to do: one plan, built or tried out."""

    task: Literal["build", "gate"]
    data: str  # the node's data folder
    model: str
    version: str  # its files are in the node's local store
    engine: str  # the plan engine's name
    device_class: str  # that the plan is for
    key: str  # of the plan; another one here means other versions than who asked has
    wish: EngineWish  # its precision is never None
    rows_max: int
    plan: str  # build: the file to write; gate: the file to try out
    golden: str = ""  # a file with recorded inputs; empty: there are none
    engines: tuple[str, ...] = ()  # further ones, as the worker has
    device: str = ""  # that the worker serves on
    threads: int = 0
    gives_way: bool = True  # to everything else on this machine
    parent: int = 0  # the process without which nobody wants the plan; 0: nobody looks
    log_level: str = "info"


class BuilderResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a builder process says at its end, as one line of JSON.

    `built`: the plan and `inspector.json` beside it are written, for whoever holds the secret to
    vouch for.  `tried`: `gate` says how it went.  `refused`: this device or library does not load
    the plan.
    """

    state: Literal["built", "tried", "refused", "failed"]
    reason: str = ""
    retry: bool = False  # failed: it may well do the next time, with nothing changed
    plan_sha256: str = ""
    bytes: int = 0
    build_s: float = 0.0
    gate: GateReport = NOT_RUN

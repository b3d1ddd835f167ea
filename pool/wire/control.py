"""The messages between the controller and everybody else, who dial it.

    worker → controller   RegisterWorker [1, …]  Heartbeat [2, …]
    edge → controller     RegisterEdge [3, …]  Counters [4, …]  Ack [5, …]  Resolve [6, …]
                          QuotaDemand [8, …]  QuotaAck [9, …]
    client → controller   Ask [7, …]
    controller → any      Welcome [10, …]  Documents [11, …]  Routes [12, …]  Command [13, …]
                          Resolved [14, …]  Answer [15, …]  QuotaShares [16, …]
    controller → worker   Wishes [17, …]  Build [18, …]  PlanReady [20, …]
    worker → controller   BuildReport [19, …]
    node → controller     RegisterNode [21, …]  NodeReport [22, …]
    controller → node     Places [23, …]
    edge → controller     Evidence [24, …]
    worker → controller   ShadowReport [25, …]
    edge → controller     Poison [26, …]
    controller → edge     Quarantine [27, …]

Positional; fields are only ever appended, each with a default.  Everything from the controller
carries the epoch of its leadership: whoever has seen a higher one ignores it.  Documents and routes
are full snapshots, so that a lost or doubled message changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from pool.wire import frames
from pool.wire.frames import Buffer, WireError

WIRE = 1
HERE = "here"  # the question whether somebody is there
UNLOADED = "unloaded by request"  # the detail of an engine that sleeps until somebody wants it

_Short = Annotated[str, msgspec.Meta(max_length=512)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=2**53)]  # not NaN either
_Part = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Many = msgspec.Meta(max_length=1 << 16)  # of anything in one message
_Ids = Annotated[tuple[_Short, ...], _Many]


_Phases = Annotated[dict[_Short, _Count], msgspec.Meta(max_length=32)]  # name → µs


class EngineState(msgspec.Struct, array_like=True, frozen=True):
    """One engine in one worker."""

    model: _Short
    version: _Short
    engine: _Short
    state: _Short  # loading | warm | draining | failed
    bytes: _Count = 0
    calls: _Count = 0  # waiting or running
    idle_s: _Seconds = 0.0  # since the last call
    detail: _Text = ""  # failed: why; warm: why what is wished for does not serve it
    loads: _Count = 0  # how often this process has loaded it
    waiting: _Count = 0  # of the calls, those that do not run yet
    runs: _Count = 0  # since it was loaded, as is what follows
    rows: _Count = 0  # in these runs
    run_us: _Count = 0  # that they took
    plan: _Short = ""  # the key of the plan that it was loaded from; empty: from the artifact alone
    arrived: _Count = 0  # calls for it since the process began, also those that ended badly
    arrived_rows: _Count = 0  # in them, as far as they were known
    rows_per_s: _Seconds = 0.0  # that this replica can do, as measured; 0: not known yet
    wake_us: _Count = 0  # learned: how long a call would wait if it slept; 0: not known yet
    # The phases of its last load, in order; they add up to the time that the first call waited.
    phases: _Phases = {}
    passes: bool = False  # failed: not by the version's fault, and it may be over any moment


class RegisterWorker(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A worker is there."""

    wire: _Count
    id: _Short
    incarnation: _Short
    pid: _Count
    address: _Short  # what edges dial
    device: _Short
    engines: Annotated[tuple[EngineState, ...], _Many] = ()
    device_class: _Short = ""  # as plans name it: "sm_90", …; empty: none
    builds: _Ids = ()  # what it can build: "engine/device class"
    phases: _Phases = {}  # of the process's start, in order: spawn, import, context, …
    is_for_call: bool = False  # it was started because a call came for a place without a process
    memory_bytes_max: _Count = 0  # for engines, on its device; 0: not said
    # It serves only where an endpoint says so, and only while no other worker has the version.
    is_fallback: bool = False


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A worker is still there; its engines, all of them."""

    wait_us: _Count
    calls: _Count
    engines: Annotated[tuple[EngineState, ...], _Many] = ()
    draining: bool = False
    plans_refused: _Count = 0  # since the process began


class QuotaParts(msgspec.Struct, array_like=True, frozen=True):
    """Parts of one key's limits, each from 0 to 1: wanted, leased or in use at one edge process.

    Parts and not rates, so that a changed quota needs no other lease.
    """

    key: _Short  # its id; empty: any key that is not named
    requests: _Part
    rows: _Part
    concurrent: _Part


class Quarantined(msgspec.Struct, array_like=True, frozen=True):
    """A request that is not to be run, because workers died of it."""

    fingerprint: Annotated[bytes, msgspec.Meta(max_length=64)]
    model: _Short
    version: _Short
    left_ms: _Count  # for so much longer


_Quarantined = Annotated[tuple[Quarantined, ...], _Many]


class RegisterEdge(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """An edge is there."""

    wire: _Count
    id: _Short
    incarnation: _Short
    pid: _Count
    parts: Annotated[tuple[QuotaParts, ...], _Many] = ()  # in use; empty: knows of no leases
    quarantined: _Quarantined = ()  # as far as it knows
    quarantines: bool = False  # it knows of quarantine, and is to be told


class VariantCount(msgspec.Struct, array_like=True, frozen=True):
    """Cumulative counts of one arm since the edge's incarnation began."""

    endpoint: _Short
    revision: _Count
    variant: _Short
    version: _Short
    requests: _Count
    errors: _Count
    hits: _Count
    failed: _Count = 0  # ended with a status of 500 or more
    # from head to answer, however it ended; counts by `histogram.BOUNDS_S`
    seconds: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=64)] = ()
    model_failed: _Count = 0  # ended with 500, 502 or 504: as the errors of a rollout


class Counters(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """What an edge has counted; cumulative, so that a lost message loses nothing."""

    incarnation: _Short
    counts: Annotated[tuple[VariantCount, ...], _Many] = ()
    in_flight: _Count = 0
    # "model/version" → calls that wait for a worker, because none can be reached
    waiting: Annotated[dict[_Text, _Count], _Many] = {}
    away: Annotated[dict[_Short, _Text], _Many] = {}  # worker → why it gets no calls from here
    # "model/version" → calls that were given to no worker and do not wait any more, since the
    # incarnation began: who refuses them for want of a machine must not forget that they came
    unserved: Annotated[dict[_Text, _Count], _Many] = {}
    # likewise → seconds since the last of them, where these are few: who begins to lead has seen
    # none of them
    unserved_age_s: Annotated[dict[_Text, _Count], _Many] = {}


class Ack(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """This edge now serves by the documents of `seq`."""

    epoch: _Count
    seq: _Count


class Resolve(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Is there such a published version?"""

    model: _Short
    version: _Short


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """A client's question; answered by one Answer.

    One of here | status | why | poke | warm | unload | rollout.
    """

    what: _Short
    argument: _Text = ""
    id: _Count = 0  # comes back in the answer


class QuotaDemand(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """What an edge process was asked for lately; of keys that are not named, nothing."""

    demands: Annotated[tuple[QuotaParts, ...], _Many] = ()


class QuotaAck(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """This edge process now keeps to the shares of `seq`."""

    epoch: _Count
    seq: _Count


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """The controller has taken note of a registration."""

    wire: _Count
    epoch: _Count


class Documents(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Every document that the data plane goes by, as JSON."""

    epoch: _Count
    seq: _Count
    specs: Annotated[dict[_Text, bytes], _Many]  # endpoint → spec
    states: Annotated[dict[_Text, bytes], _Many]  # endpoint → state
    manifests: Annotated[dict[_Text, bytes], _Many]  # "model/version" → manifest
    keys: bytes  # empty: the registry has none
    # document → why the last good one still serves
    rejected: Annotated[dict[_Text, str], _Many] = {}


class WorkerRoute(msgspec.Struct, array_like=True, frozen=True):
    """A live worker and where to dial it."""

    id: _Short
    incarnation: _Short
    address: _Short
    wait_us: _Count = 0
    # cold: no process; to dial it is to start one, so it is dialled only with a call for it
    state: _Short = "up"  # up | cold
    is_fallback: bool = False  # see `RegisterWorker`


class EngineRoute(msgspec.Struct, array_like=True, frozen=True):
    """Where one version of a model runs, and who is to load it if nobody does."""

    model: _Short
    version: _Short
    warm: _Ids  # of workers
    wake_at: _Ids  # of workers, in the order in which all edges try them
    # warm | fallback (warm on fallback workers alone) | loading | asleep | failed; and asleep with
    # no machine that it could wake on: no_instance | starting (one is on its way)
    state: _Short = "asleep"
    detail: _Text = ""
    wake_ms: _Count = 0  # estimated, of a call that came now; 0: warm, or not known


class Routes(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """The pool as the controller sees it."""

    epoch: _Count
    seq: _Count
    workers: Annotated[tuple[WorkerRoute, ...], _Many]
    engines: Annotated[tuple[EngineRoute, ...], _Many]
    ready: bool = True  # the expected workers have registered
    edges: _Count = 0  # processes; 0: not said
    far: _Count = 0  # places that nobody can dial before the controller has started their machines


class Command(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """Load or unload an engine; repeated until the heartbeat shows it done."""

    epoch: _Count
    op: _Short  # load | unload
    model: _Short
    version: _Short
    # unload: others have it warm, so a call that comes too late goes back to its edge
    is_elsewhere: bool = False


class Resolved(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """The answer to Resolve; a manifest found is in the documents sent before."""

    model: _Short
    version: _Short
    found: bool
    detail: _Text = ""


class Answer(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """The answer to Ask."""

    ok: bool
    detail: _Text
    data: bytes = b""  # JSON
    id: _Count = 0


class QuotaShares(msgspec.Struct, array_like=True, frozen=True, tag=16):
    """Which parts of keys' limits an edge process may use, all of them; holds until the next."""

    epoch: _Count
    seq: _Count
    parts: Annotated[tuple[QuotaParts, ...], _Many] = ()


class Wishes(msgspec.Struct, array_like=True, frozen=True, tag=17):
    """What the endpoints want to run their versions with; all of them, the last ones hold."""

    epoch: _Count
    wishes: Annotated[dict[_Text, bytes], _Many]  # "model/version" → `registry_sync.builds.Wanted`


class Build(msgspec.Struct, array_like=True, frozen=True, tag=18):
    """Build a plan, unless it is there already.

    Repeated until the first report, and now and then after that: every one is answered at once
    with a report of how it stands, or the build is taken for dead and given to another worker.
    One that comes after `failed` begins nothing before `retry_ms` has passed: it may have been
    under way as the build ended, and another worker builds by now.
    """

    epoch: _Count
    model: _Short
    version: _Short
    engine: _Short  # empty: whichever of this worker's engines can
    device_class: _Short
    # As somebody reported it.  A worker for which this version has another key builds nothing and
    # says `other`.  Empty: nobody has said it yet; the first report does.
    key: _Short = ""
    # Nobody wants it any more: the build is given up, its builder ends, the answer is `dropped`.
    is_over: bool = False


class BuildReport(msgspec.Struct, array_like=True, frozen=True, tag=19):
    """How a build goes.

    `wanted`: this worker could use the plan, and nobody has it; also said of a plan that was there
    and must be built anew.  `building` (with an empty key until it is known), then `built`: it is
    in the registry, whoever has built it; or `failed`.  `refused`: the plan is there, and this
    worker must not or cannot load it.  `other`: it was to build this key, and has another one.
    `dropped`: it does not build it any more, as it was told.  `unwanted`: `wanted` is taken back.
    What holds is said again after every registration.
    """

    key: _Short
    model: _Short
    version: _Short
    engine: _Short
    device_class: _Short
    state: _Short  # wanted | building | built | failed | refused | other | dropped | unwanted
    reason: _Text = ""
    retry_ms: _Count = 0  # failed: it may be tried again after this


class PlanReady(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """A plan is in the registry: whoever runs the version on such a device may take it."""

    epoch: _Count
    key: _Short
    model: _Short
    version: _Short
    engine: _Short
    device_class: _Short


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Room for one worker process on a node."""

    worker: _Short  # its id
    address: _Short  # where edges dial it, also while there is no process; empty: they cannot then
    device: _Short  # "cpu", "cuda:0", …; empty: not said
    state: _Short = "cold"  # cold | starting | up | draining
    pid: _Count = 0


class RegisterNode(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """A node that can start and end worker processes is there."""

    wire: _Count
    id: _Short
    incarnation: _Short
    pid: _Count
    places: Annotated[tuple[Place, ...], _Many] = ()
    up_min: _Count = 0  # of its places, whatever the demand
    parked: _Count = 0  # on each device so many are up beyond those that serve
    rest_s: _Seconds = 60.0  # one that nobody needs is up so long after it was of use
    # How long a place without an address takes until its worker is there; 0: nobody can say yet.
    start_s: _Seconds = 0.0


class NodeReport(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """A node is still there; all its places."""

    places: Annotated[tuple[Place, ...], _Many] = ()
    # What else it has to show, where its places are on machines that come and go.
    counts: Annotated[dict[_Short, _Count], msgspec.Meta(max_length=256)] = {}
    trouble: _Text = ""  # what keeps it from its work, for people


class Places(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """Which places are to have a process; the last ones hold, also when the controller is gone."""

    epoch: _Count
    seq: _Count
    up: _Ids  # of workers; any other place drains and stays cold until somebody dials it
    silent: _Ids = ()  # of those others; they end even if the node has fewer than its minimum then


UNIT_HASHES: Final = 1 << 52  # as many as there are

_Hash = Annotated[int, msgspec.Meta(ge=0, le=UNIT_HASHES)]  # of a unit
_Number = Annotated[float, msgspec.Meta(ge=-(2**53), le=2**53)]  # not NaN either
_Classes = Annotated[dict[_Short, _Count], msgspec.Meta(max_length=1024)]


class UnitSeen(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a unit did in a segment, from its first error or slow call there on."""

    hash: _Hash
    calls: _Count
    errors: _Count
    slow: _Count  # over the guard's limit


_Told = Annotated[tuple[UnitSeen, ...], msgspec.Meta(max_length=4096)]


class ArmEvidence(msgspec.Struct, array_like=True, frozen=True):
    """What one arm of a rollout did in one segment, since the edge's incarnation began.

    Only calls that were dispatched and came to an end of the model's or its worker's making: no
    answers out of the cache, no 4xx, 429 or 503, no caller that left, none that picked its arm.
    """

    endpoint: _Short
    rollout: _Short  # its id
    segment: _Count
    variant: _Short
    requests: _Count = 0  # that were given this arm; dispatched or not
    assigned: _Count = 0  # units that were given this arm, each once; dispatched or not
    calls: _Count = 0
    lone_calls: _Count = 0  # of these, those without a unit
    units: _Count = 0  # of all, each once in a look window; a call without one is its own
    errors: _Count = 0  # calls that the model failed, or did not answer in time
    lone_errors: _Count = 0  # of these, those without a unit
    slow: _Count = 0  # calls over the guard's limit
    lone_slow: _Count = 0
    told: _Told = ()  # units with an error or a slow call, if their hash is below `units_below`
    units_below: _Hash = UNIT_HASHES  # of both arms; falls when there are too many
    # Of the calls, from being dispatched to the answer; counts by `histogram.BOUNDS_S`
    seconds: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=64)] = ()
    log_calls: _Count = 0  # each unit once in a look window
    log_sum: _Seconds = 0.0  # of ln(1 + µs) over these
    log_squares: _Seconds = 0.0
    scores: _Count = 0  # rows of answers that were looked into: the first output's largest value
    score_sum: _Number = 0.0
    score_squares: _Seconds = 0.0
    classes: _Classes = {}  # where that value was


class Evidence(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """What an edge has seen of rollouts; cumulative, so that a lost message loses nothing."""

    incarnation: _Short
    arms: Annotated[tuple[ArmEvidence, ...], _Many] = ()


class ShadowExample(msgspec.Struct, array_like=True, frozen=True):
    """A call that the candidate answered otherwise."""

    request_id: _Short
    inputs: _Short  # digest of the inputs
    relative_error: _Seconds
    detail: _Text = ""
    kind: _Short = ""  # failed | unlike | top1 | values


class ShadowCount(msgspec.Struct, array_like=True, frozen=True):
    """How a candidate's answers compare with a baseline's, since the worker's process began."""

    rollout: _Short  # "endpoint/id"
    baseline: _Short  # "model/version"
    candidate: _Short
    offered: _Count = 0  # calls that were sampled
    dropped: _Count = 0  # of these, because the worker was busy, or the budget spent
    failed: _Count = 0  # the candidate gave no answer
    compared: _Count = 0
    unlike: _Count = 0  # of these, other tensors, datatypes or shapes
    rows: _Count = 0  # of the others whose largest value has a place
    top1_off: _Count = 0  # of these rows, where it is elsewhere
    error_sum: _Seconds = 0.0  # relative errors of the calls that are alike
    error_max: _Seconds = 0.0
    # Counts of these by `histogram.ERROR_BOUNDS`
    errors: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=64)] = ()
    worst: Annotated[tuple[ShadowExample, ...], msgspec.Meta(max_length=64)] = ()
    last_failure: _Text = ""
    absent: _Count = 0  # of the dropped: the candidate is not loaded where the call was answered
    device_us: _Count = 0  # for which copies held the device


class ShadowReport(msgspec.Struct, array_like=True, frozen=True, tag=25):
    """What a worker has compared; cumulative."""

    counts: Annotated[tuple[ShadowCount, ...], _Many] = ()


class Poison(msgspec.Struct, array_like=True, frozen=True, tag=26):
    """What an edge knows to be in quarantine; sent whenever it has put something there."""

    quarantined: _Quarantined


class Quarantine(msgspec.Struct, array_like=True, frozen=True, tag=27):
    """All that is in quarantine; an edge that knows of more keeps to that too."""

    epoch: _Count
    quarantined: _Quarantined


Message = (
    RegisterWorker
    | Heartbeat
    | RegisterEdge
    | Counters
    | Ack
    | Resolve
    | Ask
    | Welcome
    | Documents
    | Routes
    | Command
    | Resolved
    | Answer
    | QuotaDemand
    | QuotaAck
    | QuotaShares
    | Wishes
    | Build
    | BuildReport
    | PlanReady
    | RegisterNode
    | NodeReport
    | Places
    | Evidence
    | ShadowReport
    | Poison
    | Quarantine
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> bytes:
    """Return `message` alone, as a copy to keep; `decode` reads it back."""
    return _encoder.encode(message)


def encode(message: Message) -> list[Buffer]:
    """Return the buffers of the frame of `message`: the header is empty, the body the message."""
    return frames.encode_message(pack(message))


def decode(body: Buffer) -> Message:
    """Return the message of a frame's body.

    Raises:
        WireError: not a message of this wire, or a field of a wrong type or beyond its bound.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message of the control wire: {error}") from None

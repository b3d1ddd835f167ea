"""Puts a server under load and tells what a request cost it.

The load comes from `wrk` where it is installed, else from a client of our own; both
run as a process apart and end by printing one line of figures (`tally`).
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from infra.bench import cpu
from infra.bench.calls import VARIED_BYTES, Call
from infra.bench.processes import environment
from infra.bench.tally import MARK, LoadFailed, parse

TIMEOUT_S = 30

LUA = """\
local file = assert(io.open(%(body_path)s, "rb"))
local body = file:read("*a")
file:close()
wrk.method = %(method)s
if #body > 0 then wrk.body = body end
%(headers)s
local at = {%(vary_at)s}
if #at > 0 then
   local count = %(start)d
   local before, after, bytes = nil, nil, {}
   function init()
      local whole = wrk.format()
      local shift = #whole - #body + 1
      before = whole:sub(1, shift + at[1] - 1)
      after = whole:sub(shift + at[#at] + 1)
      bytes = {body:byte(at[1] + 1, at[#at] + 1)}
   end
   function request()
      local rest = count
      count = count + 1
      for i = 1, #at do
         bytes[at[i] - at[1] + 1] = rest %% 256
         rest = math.floor(rest / 256)
      end
      return before .. string.char(unpack(bytes)) .. after
   end
end
function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '%(mark)s{"requests":%%d,"duration_us":%%d,"connect":%%d,"read":%%d,"write":%%d,' ..
      '"timeout":%%d,"status":%%d,"p50_us":%%d,"p99_us":%%d}\\n',
      summary.requests, summary.duration, e.connect, e.read, e.write, e.timeout, e.status,
      latency:percentile(50), latency:percentile(99)))
end
"""


class Sample(msgspec.Struct, frozen=True):
    """One window of load on one server."""

    requests: int
    errors: int
    cpu_us_per_request: float  # of all server processes
    p50_ms: float
    p99_ms: float
    rps: float
    duration_s: float
    other_share: float  # of the machine, used by neither server nor client; 0..1


def client_name() -> str:
    """Return which client `measure` uses here: "wrk" or "own"."""
    return "wrk" if shutil.which("wrk") else "own"


def measure(
    call: Call,
    *,
    clients: int,
    duration_s: float,
    pids: Callable[[], Sequence[int]],
    client: str | None = None,
) -> Sample:
    """Load a server for a while and read its processes' CPU clocks around it.

    Args:
        call: what to send; a body with `vary_at` differs in every request, also from
            those of every other run.
        clients: connections, each with one request under way.
        duration_s: rounded up to whole seconds by wrk.
        pids: the server's processes; asked before and after.
        client: "wrk" or "own"; None takes wrk where it is installed.

    Raises:
        LoadFailed: the client failed, or not one answer came back.
        ProcessGone: a server process ended meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="tidepool-bench-") as folder:
        if (client or client_name()) == "wrk":
            command = wrk_command(call, Path(folder), clients, duration_s)
        else:
            command = own_command(call, Path(folder), clients, duration_s)
        ours_ns, busy_ns, started_s = _children_ns(), cpu.machine_busy_ns(), time.monotonic()
        before = cpu.read(pids())
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=duration_s + 2 * TIMEOUT_S,
        )
        used_ns = cpu.used_ns(before, cpu.read(pids()))
        elapsed_s = time.monotonic() - started_s
        client_ns = _children_ns() - ours_ns
        other_ns = cpu.machine_busy_ns() - busy_ns - used_ns - client_ns
    # wrk goes on, with another load, where its script fails; only stderr tells.
    if finished.returncode or finished.stderr.strip():
        raise LoadFailed(f"{command[0]} failed: {finished.stderr[-1000:]}")
    tally = parse(finished.stdout)
    return Sample(
        requests=tally.requests,
        errors=tally.errors,
        cpu_us_per_request=used_ns / 1e3 / tally.requests,
        p50_ms=tally.p50_us / 1e3,
        p99_ms=tally.p99_us / 1e3,
        rps=tally.requests / (tally.duration_us / 1e6),
        duration_s=tally.duration_us / 1e6,
        other_share=min(1.0, max(0.0, other_ns / 1e9 / elapsed_s / (os.cpu_count() or 1))),
    )


def _children_ns() -> int:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


def wrk_command(call: Call, folder: Path, clients: int, duration_s: float) -> list[str]:
    """Write the script for wrk into `folder` and return its command line.

    One thread is enough for every load here, and leaves the other cores to the server.
    """
    script = folder / "load.lua"
    script.write_text(lua(call, _body_file(call, folder)))
    return [
        "wrk",
        "--threads=1",
        f"--connections={clients}",
        f"--duration={math.ceil(duration_s)}s",
        f"--timeout={TIMEOUT_S}s",
        f"--script={script}",
        call.url,
    ]


def own_command(call: Call, folder: Path, clients: int, duration_s: float) -> list[str]:
    """Return the command line of our own client for the same load."""
    plan = {
        "url": call.url,
        "method": call.method,
        "headers": dict(call.headers),
        "body_path": str(_body_file(call, folder)),
        "vary_at": call.vary_at,
        "start": random_start(),
        "clients": clients,
        "duration_s": duration_s,
    }
    return [sys.executable, "-m", "infra.bench.client", json.dumps(plan)]


def _body_file(call: Call, folder: Path) -> Path:
    path = folder / "body"
    path.write_bytes(call.body)
    return path


def lua(call: Call, body_path: Path) -> str:
    """Write the script that makes wrk send `call`."""
    headers = "\n".join(
        f"wrk.headers[ {_lua_string(name)} ] = {_lua_string(value)}"
        for name, value in call.headers.items()
    )
    return LUA % {
        "body_path": _lua_string(str(body_path)),
        "method": _lua_string(call.method),
        "headers": headers,
        "vary_at": ", ".join(map(str, call.vary_at)),
        "start": random_start(),
        "mark": MARK,
    }


def _lua_string(text: str) -> str:
    if "]==]" in text or "\n" in text or "\r" in text:
        raise ValueError(f"cannot be written into a header: {text!r}")
    return f"[==[{text}]==]"


def random_start() -> int:
    """Return where the count of varied requests begins; leaves room above for 2^40 of them."""
    return random.SystemRandom().randrange(2 ** (8 * VARIED_BYTES) - 2**40)

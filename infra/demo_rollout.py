"""The demo of rollouts: a good version is promoted, and a bad one rolled back, by themselves.

While this machine's files are sent to magika all the time, version 2 takes over step by step.  Then
version 3 is to, which has a bug that a fifth of the files meet; the guard finds it.  Every answer
but those of the bug is held against the magika package's own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import demo_model
from infra.client import ask
from infra.demo import ENDPOINT, read, until_warm
from infra.demo_files import Sample
from infra.demo_traffic import Tally, Traffic
from infra.local import UpOptions
from infra.rollout_view import shadow_lines
from registry_sync import catalog, endpoints, keys, rollout_orders
from registry_sync.documents import EndpointSpec, EngineWish, Variant
from registry_sync.publish import publish
from registry_sync.rollout_terms import Shadow
from registry_sync.rollouts import CANDIDATE
from registry_sync.stores import Store

GOOD, BAD = "2", "3"
STEPS = (10.0, 50.0, 100.0)  # percent
HOLD_S = 2.0
SHADOW = Shadow(sample=1.0)
ROLLOUT_S_MAX = 60.0
AFTER_S = 1.0  # watched once a rollout has ended
LOOK_S = 0.25

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rolled:
    """How one rollout has ended."""

    version: str
    document: Document  # of the question `rollout`, at the end
    took_s: float

    @property
    def state(self) -> str:
        """One of promoted and rolled_back."""
        state: str = self.document["state"]
        return state

    @property
    def text(self) -> str:
        """The version and what became of it."""
        return f"version {self.version} {self.state.replace('_', ' ')} after {self.took_s:.1f} s"


@dataclass(frozen=True, slots=True)
class RolloutRun:
    """What the demo has seen."""

    good: Rolled
    bad: Rolled
    while_bad: Tally  # calls that began while the bad version may have had a share
    others: Tally  # all others

    @property
    def is_ok(self) -> bool:
        """Whether both ended as they should, at nobody's cost but the bug's."""
        return (self.good.state, self.bad.state) == ("promoted", "rolled_back") and not self.harm

    @property
    def harm(self) -> int:
        """How many calls failed or got a wrong answer, but for those that met the bug."""
        return (self.while_bad + self.others).faults + self.others.candidate_failed

    def summary(self) -> str:
        """Return the demo's last line."""
        bugs = self.while_bad.candidate_failed
        return (
            f"rollout {'ok' if self.is_ok else 'failed'}: {self.good.text}, {self.bad.text} and "
            f"{self.while_bad.candidate_calls} of its calls, of which {bugs} failed; of all other "
            f"{(self.while_bad + self.others).calls - bugs} calls {self.harm} failed"
        )


def prepare(store: Store, folder: Path, samples: Sequence[Sample]) -> str:
    """Publish three versions, give the first one all traffic, and return a key to call with.

    A registry that has them already (`--data` of an earlier demo) is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    published = catalog.versions(store, ENDPOINT)
    model = demo_model.model_path()
    second, third = folder / "magika-2.onnx", folder / "magika-3.onnx"
    if "1" not in published:
        publish(store, ENDPOINT, model, version="1")
    if GOOD not in published:
        demo_model.make_version_2(model, second)
        publish(store, ENDPOINT, second, version=GOOD)
    if BAD not in published:
        demo_model.make_failing(model, third, worst_residue(samples))
        publish(store, ENDPOINT, third, version=BAD)
    endpoints.set_spec(
        store,
        EndpointSpec(
            endpoint=ENDPOINT,
            variants=(Variant("stable", ENDPOINT, "1", 100),),
            engine=EngineWish("onnxruntime"),  # it is where the bug is one
        ),
        abort_rollout=True,
    )
    key, record = keys.make_key("demo", ("infer:*", "admin"))
    keys.add_key(store, record)
    return key


def worst_residue(samples: Sequence[Sample]) -> int:
    """Return a residue that a fifth of the files have, or a few more."""
    found = Counter(demo_model.residue(demo_model.features(sample.path)) for sample in samples)
    enough = len(samples) / demo_model.FAILS_OF
    return min((count, which) for which, count in found.items() if count >= enough)[1]


async def demo_rollouts(
    options: UpOptions,
    store: Store,
    key: str,
    samples: Sequence[Sample],
    on_look: Callable[[Document], None],
    say: Callable[[str], None],
) -> RolloutRun:
    """Roll out both versions on a running stack that was `prepare`d.

    Args:
        options: of the stack.
        store: its registry.
        key: to call with.
        samples: the files that are sent.
        on_look: is given the rollout, four times a second.
        say: is given what begins.

    Raises:
        TimeoutError: a rollout comes to no end.
    """
    say("waiting for version 1 to be warm")
    await until_warm(options)
    traffic = Traffic(options.url, key, CANDIDATE, BAD, samples, read(samples))
    with traffic.flowing():
        say(f"version {GOOD} is to take over: as good, half the size")
        good = await _roll(options, store, GOOD, on_look)
        say(_diff(good))
        say(f"version {BAD} is to take over: it has a bug that a fifth of the files meet")
        traffic.begin(BAD)
        bad = await _roll(options, store, BAD, on_look)
        traffic.begin("after")
        say(_diff(bad))
        await asyncio.sleep(AFTER_S)
    others = traffic.tally("") + traffic.tally("after")
    return RolloutRun(good, bad, traffic.tally(BAD), others)


async def _roll(
    options: UpOptions, store: Store, version: str, on_look: Callable[[Document], None]
) -> Rolled:
    """Roll a version out to its end; on return every edge goes by it."""
    began_s = time.monotonic()
    ordered = await asyncio.to_thread(
        lambda: rollout_orders.start(
            *(store, ENDPOINT, version), steps=STEPS, hold_s=HOLD_S, shadow=SHADOW
        )
    )
    assert ordered.spec.rollout is not None
    await _poke(options)
    document: Document = {}
    try:
        async with asyncio.timeout(ROLLOUT_S_MAX):
            while document.get("state", "running") == "running":
                await asyncio.sleep(LOOK_S)
                document = await _look(options, ordered.spec.rollout.id) or document
                if document:
                    on_look(document)
    except TimeoutError:
        raise TimeoutError(
            f"the rollout of version {version} has come to no end after {ROLLOUT_S_MAX:.0f} s; "
            f"it waits for {document.get('waits_for') or 'time'}"
        ) from None
    took_s = time.monotonic() - began_s
    await _poke(options)
    return Rolled(version, document, took_s)


def _diff(rolled: Rolled) -> str:
    """Return the first line of `tidepool rollout diff`."""
    return f"its answers to copies of calls: {shadow_lines(rolled.document)[0]}"


async def _poke(options: UpOptions) -> None:
    """Let every edge go by what is in the registry now."""
    answer = await ask(options.node.control, options.node.data, "poke")
    if not answer.ok:
        raise TimeoutError(answer.detail)


async def _look(options: UpOptions, id: str) -> Document:
    """Return the rollout, or nothing while the controller does not go by it yet."""
    answer = await ask(options.node.control, options.node.data, "rollout", ENDPOINT)
    document: Document = json.loads(answer.data) if answer.ok else {}
    return document if document.get("id") == id else {}

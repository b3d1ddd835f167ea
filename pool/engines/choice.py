"""Which engines are to run a version: a pure function of what is wished and what is there.

The best comes first.  A portable engine needs nothing but the artifact and always follows last;
each other one needs a plan, and says under which key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from pool.engines.base import BuildSpec, CannotBuild, Engine, EngineError, PlanEngine, Probe
from registry_sync.builds import Wanted
from registry_sync.documents import Manifest
from registry_sync.plans import PlanIdentity


class Option(msgspec.Struct, frozen=True):
    """An engine that could run a version, once its plan is there."""

    engine: PlanEngine
    spec: BuildSpec
    identity: PlanIdentity

    @property
    def key(self) -> str:
        """Where its plan lies."""
        return self.identity.key


def spec_of(manifest: Manifest, folder: Path, wanted: Wanted, device_class: str) -> BuildSpec:
    """Return what is to be built for one device class.

    Args:
        folder: holds the manifest's files.
        wanted: of the endpoints and the manifest together, see `pool.wanted`; whatever it leaves
            open is as the manifest promises.
    """
    wish = wanted.engine
    if wish.precision is None:
        wish = replace(wish, precision=manifest.precision)
    rows_max = min(wanted.rows_max or manifest.rows_max, manifest.rows_max)
    return BuildSpec(manifest, folder, wish, rows_max, device_class)


def portable(engines: Sequence[Engine], format: str, name: str) -> Engine:
    """Pick the engine that runs an artifact as it is: the named one, else the first.

    Raises:
        EngineError: no engine here runs it.
    """
    fitting = [engine for engine in engines if format in engine.formats]
    if not fitting:
        known = ", ".join(sorted(frozenset().union(*(engine.formats for engine in engines))))
        raise EngineError(f'no engine of this worker runs the format "{format}"; it runs: {known}')
    return next((engine for engine in fitting if engine.name == name), fitting[0])


def wants(engine: PlanEngine, spec: BuildSpec) -> bool:
    """Tell whether a plan of this engine is wished for at all."""
    if spec.manifest.format not in engine.formats:
        return False
    if spec.wish.name not in ("auto", engine.name):
        return False
    return spec.wish.ahead_of_time or not engine.is_on_request


def options(
    engines: Sequence[PlanEngine], probes: Mapping[str, Probe], spec: BuildSpec
) -> tuple[list[Option], str]:
    """Return the engines that could run a version on this device, the best first.

    Args:
        engines: in order of preference.
        probes: of this process, by the engine's name.

    Returns:
        The options, and in words what stands in the way of those that are wished for and are not
        among them.
    """
    found, problems = [], []
    for engine in engines:
        if not wants(engine, spec):
            continue
        probe = probes[engine.name]
        if not probe.available:
            problems.append(f"{engine.name}: {probe.reason}")
            continue
        try:
            here = BuildSpec(
                spec.manifest, spec.folder, spec.wish, spec.rows_max, probe.device_class
            )
            found.append(Option(engine, here, engine.identity(here)))
        except CannotBuild as error:
            problems.append(f"{engine.name}: {error}")
    return found, "; ".join(problems)


def option_for(
    engines: Sequence[PlanEngine], probes: Mapping[str, Probe], spec: BuildSpec, name: str
) -> Option:
    """Return what to build for `spec.device_class`, which need not be here.

    Args:
        name: of the engine; empty: the first that can.

    Raises:
        CannotBuild: no engine here builds that; the text says which do.
    """
    fitting = [
        engine
        for engine in engines
        if name in ("", engine.name) and spec.manifest.format in engine.formats
    ]
    for engine in fitting:
        if spec.device_class in probes[engine.name].builds_for:
            wish = spec.wish
            if engine.is_on_request:
                wish = replace(wish, ahead_of_time=True)
            asked = BuildSpec(spec.manifest, spec.folder, wish, spec.rows_max, spec.device_class)
            return Option(engine, asked, engine.identity(asked))
    targets = [
        f"{engine.name} for {', '.join(probes[engine.name].builds_for) or 'nothing'}"
        for engine in fitting
    ]
    raise CannotBuild(
        f"nothing here builds {spec.manifest.format} for {spec.device_class}; "
        f"there is: {'; '.join(targets) or 'no engine for this format'}"
    )

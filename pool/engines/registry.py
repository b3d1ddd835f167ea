"""Which engines this worker has: the built-in ones and those the operator names.

Does not load models, nor frameworks that take long to load.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from pool.engines.base import Engine, PlanEngine
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from pool.engines.tensorrt_engine import TensorRtEngine
from pool.engines.tensorrt_profiles import NAMES as TENSORRT_NAMES
from pool.engines.torch_engine import TorchCompiledEngine, TorchEngine

_ATTRIBUTES: Final = ("name", "formats", "probe")
_OF_OTHERS: Final = ("load",)
_OF_PLAN_ENGINES: Final = ("is_on_request", "identity", "build", "load_plan")


class BadEngineName(ValueError):
    """The operator named an engine that cannot be had; the text says why and the way out."""


def find_engines(extra: Sequence[str] = (), device: str = "cpu") -> tuple[Engine, ...]:
    """Make the engines of this worker that run artifacts as they are.

    Args:
        extra: further engines, each "module:Class"; the class is called without arguments.
            They come before the built-in ones, so an operator can replace one.
        device: on which the built-in ones are to run where they can: "cpu", "cuda:0", …

    Raises:
        BadEngineName: a name that does not lead to an engine.
    """
    named = [engine for engine in map(_make, extra) if not _needs_plan(engine)]
    return (*named, OnnxRuntimeEngine(), TorchEngine(device))


def find_plan_engines(
    extra: Sequence[str] = (), device: str = "cpu", threads: int = 0
) -> tuple[PlanEngine, ...]:
    """Make the engines of this worker that run plans, in order of preference.

    Args:
        extra: as for `find_engines`; those that need plans are taken.
        device: on which the built-in ones are to run: "cpu", "cuda:0", …
        threads: that one run of theirs takes on a CPU; 0 lets the engine choose.

    Raises:
        BadEngineName: a name that does not lead to an engine.
    """
    named = [engine for engine in map(_make, extra) if _needs_plan(engine)]
    tensorrt = (TensorRtEngine(name, device) for name in TENSORRT_NAMES)
    found: dict[str, PlanEngine] = {}
    for engine in (*named, *tensorrt, TorchCompiledEngine(device, threads)):
        found.setdefault(engine.name, engine)  # plans name their engine: there is one of a name
    return tuple(found.values())


def _needs_plan(engine: Any) -> bool:
    return hasattr(engine, "load_plan")


def _make(name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        raise BadEngineName(f'engine "{name}": expected "module:Class", e.g. "acme.engine:Engine"')
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadEngineName(
            f'engine "{name}": cannot import {module_name}: {error}; is it installed where the '
            "workers run?"
        ) from error
    maker = getattr(module, class_name, None)
    if maker is None:
        raise BadEngineName(f'engine "{name}": {module_name} has no "{class_name}"')
    engine = maker()
    is_plan_engine = _needs_plan(engine)
    for attribute in (*_ATTRIBUTES, *(_OF_PLAN_ENGINES if is_plan_engine else _OF_OTHERS)):
        if not hasattr(engine, attribute):
            raise BadEngineName(f'engine "{name}" is no engine: it has no "{attribute}"')
    return engine

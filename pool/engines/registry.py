"""Which engines this worker has: the built-in ones and those the operator names.

Does not load models.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from pool.engines.base import Engine, EngineError
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine


class BadEngineName(ValueError):
    """The operator named an engine that cannot be had; the text says why and the way out."""


def find_engines(extra: Sequence[str] = ()) -> tuple[Engine, ...]:
    """Make the engines of this worker.

    Args:
        extra: further engines, each "module:Class"; the class is called without arguments.
            They come before the built-in ones, so an operator can replace one.

    Raises:
        BadEngineName: a name that does not lead to an engine.
    """
    return (*(_make(name) for name in extra), OnnxRuntimeEngine())


def engine_for(engines: Sequence[Engine], format: str) -> Engine:
    """Pick the first engine that runs artifacts of this format.

    Raises:
        EngineError: no engine here runs it.
    """
    for engine in engines:
        if format in engine.formats:
            return engine
    known = ", ".join(sorted(frozenset().union(*(engine.formats for engine in engines))))
    raise EngineError(f'no engine of this worker runs the format "{format}"; it runs: {known}')


def _make(name: str) -> Engine:
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
    engine: Engine = maker()
    for attribute in ("name", "formats", "probe", "load"):
        if not hasattr(engine, attribute):
            raise BadEngineName(f'engine "{name}" is no engine: it has no "{attribute}"')
    return engine

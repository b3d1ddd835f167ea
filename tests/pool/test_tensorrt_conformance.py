"""Every name that our code uses of TensorRT exists: in TensorRT for RTX, and in TensorRT 11.

The code is read, not run: a variable of a known name stands for one class of the framework.  What
builds is checked against `tensorrt_rtx`; what loads and runs against the runtime of TensorRT 11.4
as well, which `tensorrt_lean_bindings` carries.  (That one is only looked at: without a driver it
ends the process when it is handed a plan.)
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ENGINES = Path(__file__).resolve().parents[2] / "pool" / "engines"

# By module: what stands for which class; `trt` is the framework's module everywhere.
CLASSES = {
    "tensorrt_build": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "tensor": "ITensor",
    },
    "tensorrt_log": {},
    "tensorrt_plan": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
    },
    "tensorrt_session": {"engine": "ICudaEngine", "context": "IExecutionContext"},
    "rtx_runtime": {
        "engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
        "strategies": "DynamicShapesKernelSpecializationStrategy",
    },
}
# The runtime alone cannot inspect, which happens where a plan is built.
ONLY_BUILDING = {"inspector"}
RUNNING = ("tensorrt_log", "tensorrt_plan", "tensorrt_session")


def uses(tree: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each dotted name as its first word and the rest; ``self._engine`` counts as engine."""
    for node in ast.walk(tree):
        words: list[str] = []
        while isinstance(node, ast.Attribute):
            words.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and words:
            root = node.id
            if root == "self" and len(words) > 1:
                root, words = words[0].lstrip("_"), words[1:]
            yield root, tuple(words)


def missing(tree: ast.AST, classes: Mapping[str, str], trt: Any) -> set[str]:
    """Return what the framework does not have."""
    found = set()
    for root, words in uses(tree):
        if root == "trt":
            there: Any = trt
            for word in words:
                if word not in ("__name__", "__version__"):
                    there = getattr(there, word, None)
            if there is None:
                found.add(".".join(("trt", *words)))
        elif root in classes and not hasattr(getattr(trt, classes[root], None), words[0]):
            found.add(f"{classes[root]}.{words[0]}")
    return found


def tree_of(module: str) -> ast.Module:
    return ast.parse((ENGINES / f"{module}.py").read_text())


@pytest.mark.parametrize("module", CLASSES)
def test_tensorrt_rtx_has_every_name_that_is_used(module: str) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    assert missing(tree_of(module), CLASSES[module], trt) == set()


@pytest.mark.parametrize("module", RUNNING)
def test_runtime_of_tensorrt_11_has_every_name_that_running_uses(module: str) -> None:
    trt = importlib.import_module("tensorrt_lean_bindings")
    assert trt.__version__.startswith("11.")
    classes = {word: one for word, one in CLASSES[module].items() if word not in ONLY_BUILDING}
    assert missing(tree_of(module), classes, trt) == set()


@pytest.mark.parametrize("module", CLASSES)
def test_table_names_only_what_the_module_uses(module: str) -> None:
    roots = {root for root, _ in uses(tree_of(module))}
    assert {"trt", *CLASSES[module]} <= roots


@pytest.mark.parametrize("line", ["engine.gone()", "self._engine.gone", "trt.ILogger.Gone"])
def test_name_that_is_not_there_is_found(line: str) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    assert missing(ast.parse(line), {"engine": "ICudaEngine"}, trt)


def test_every_module_that_handles_the_framework_is_in_the_table() -> None:
    handling = {
        path.stem
        for path in ENGINES.glob("*.py")
        if any(root == "trt" for root, _ in uses(ast.parse(path.read_text())))
    }
    assert handling == CLASSES.keys()

"""The demo's model: what the `magika` package ships, made ready to serve.

Owns where the model lies, how a file becomes the model's input, how its scores
become a label, and how version 2 and one that fails are made.  It reads the package's
files without importing the package, so nothing here loads onnxruntime; what the
package itself answers is `demo_files.expected`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NAME = "magika"
INPUT = "bytes"  # int32 [rows, 2048]
OUTPUT = "target_label"  # float32 [rows, 214]

SCORE_DIFFERENCE_MAX = 0.02
"""How far two scores of one answer may lie apart.

Batching moves a score by up to 3e-4 and version 2 by up to 5e-4 (40 files of
many kinds); a wrong input row or a mixed-up answer moves it by much more.
"""

FAILS_OF = 5
"""One residue of so many of the sum of an input's values is what the bad version fails at."""

HALF_ELEMENTS_MIN = 1024
"""Smaller weights stay as they are: halving them saves nothing."""


class DemoUnavailable(Exception):
    """The `magika` package is not there, or is laid out in a way unknown to the demo."""


class NotForTheModel(ValueError):
    """The package answers this file by a rule of its own, without the model."""


@dataclass(frozen=True)
class Answer:
    """A label of the package's vocabulary and how sure the model was of it."""

    label: str
    score: float  # 0..1

    def agrees(self, other: Answer) -> bool:
        """Tell whether both say the same: one label, and scores that differ by rounding only."""
        return self.label == other.label and abs(self.score - other.score) <= SCORE_DIFFERENCE_MAX


@dataclass(frozen=True)
class Config:
    """What the package says about its model, in its own words."""

    beg_size: int
    end_size: int
    block_size: int
    padding_token: int
    min_file_size_for_dl: int
    medium_confidence_threshold: float
    labels: tuple[str, ...]  # the model's outputs, in order
    thresholds: dict[str, float]
    overwrite_map: dict[str, str]
    text_labels: frozenset[str]


def package_folder() -> Path:
    """Return the folder of the installed `magika` package, without importing it.

    Raises:
        DemoUnavailable: the package is not installed.
    """
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None:
        raise DemoUnavailable(
            "the demo serves the model inside the package magika, which is not installed; "
            "run: pip install 'tidepool[demo]'"
        )
    return Path(spec.origin).parent


def model_path() -> Path:
    """Return the ONNX file that the package uses by default.

    Raises:
        DemoUnavailable: the package is not installed or holds no such file.
    """
    found = sorted(package_folder().glob("models/standard_v*/model.onnx"))
    if not found:
        raise DemoUnavailable(f"no models/standard_v*/model.onnx in {package_folder()}")
    return found[-1]


@functools.cache
def config() -> Config:
    """Read the package's settings of its model.

    Raises:
        DemoUnavailable: the package is not installed, or its features are of a kind
            that `features` does not know.
    """
    raw = json.loads((model_path().parent / "config.min.json").read_bytes())
    if raw["mid_size"] or raw["use_inputs_at_offsets"]:
        raise DemoUnavailable(f"unknown kind of features in {model_path().parent}")
    kinds = json.loads((package_folder() / "config" / "content_types_kb.min.json").read_bytes())
    return Config(
        beg_size=raw["beg_size"],
        end_size=raw["end_size"],
        block_size=raw["block_size"],
        padding_token=raw["padding_token"],
        min_file_size_for_dl=raw["min_file_size_for_dl"],
        medium_confidence_threshold=raw["medium_confidence_threshold"],
        labels=tuple(raw["target_labels_space"]),
        thresholds=raw["thresholds"],
        overwrite_map=raw["overwrite_map"],
        text_labels=frozenset(name for name, kind in kinds.items() if kind["is_text"]),
    )


def features(data: bytes | Path) -> NDArray[np.int32]:
    """Turn a file into one input row of the model.

    The first block without leading white space gives the first half, the last block
    without trailing white space the second; what is missing is padded, behind the
    first half and before the second.

    Args:
        data: the whole content, or where it lies; of a path only two blocks are read.

    Returns:
        int32 [2048]; every value is a byte, or 256 for padding.

    Raises:
        NotForTheModel: too short, or too short once stripped.

    Source:
        `Magika._extract_features_from_seekable` of magika 1.0.
    """
    rules = config()
    first, last = _blocks(data, rules.block_size)
    first = first.lstrip()[: rules.beg_size]
    last = last.rstrip()[-rules.end_size :]
    if len(first) < rules.min_file_size_for_dl:
        raise NotForTheModel(
            f"{len(first)} bytes without leading white space; "
            f"the model needs {rules.min_file_size_for_dl}"
        )
    row = np.full(rules.beg_size + rules.end_size, rules.padding_token, dtype=np.int32)
    row[: len(first)] = np.frombuffer(first, dtype=np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, dtype=np.uint8)
    return row


def _blocks(data: bytes | Path, block_bytes: int) -> tuple[bytes, bytes]:
    """Return the first and the last block; the same bytes twice where all fits in one."""
    if isinstance(data, bytes):
        return data[:block_bytes], data[-block_bytes:]
    with data.open("rb") as stream:
        first = stream.read(block_bytes)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - block_bytes))
        return first, stream.read(block_bytes)


def answer(scores: NDArray[Any]) -> Answer:
    """Read the model's scores as the package does in its default mode.

    The best label counts if its score reaches the label's own threshold (or the
    common one); else only text or not text is told.

    Args:
        scores: float [214] or [1, 214], one row of the model's output.

    Source:
        `Magika._get_output_label_from_dl_label_and_score`, mode HIGH_CONFIDENCE.
    """
    rules = config()
    row = np.asarray(scores).reshape(-1)
    if len(row) != len(rules.labels):
        raise ValueError(f"{len(row)} scores for {len(rules.labels)} labels")
    best = int(row.argmax())
    seen, score = rules.labels[best], float(row[best])
    label = rules.overwrite_map.get(seen, seen)
    if score < threshold(seen):
        label = "txt" if label in rules.text_labels else "unknown"
    return Answer(label, score)


def threshold(seen: str) -> float:
    """Return the score from which the package believes the model's label `seen`."""
    rules = config()
    return rules.thresholds.get(seen, rules.medium_confidence_threshold)


def make_version_2(src: Path, dst: Path) -> None:
    """Write the same model with its large weights in half precision.

    It is what a canary is in earnest: other bytes, half the size, answers that
    differ by rounding.  The weights are cast back to float32 by the graph, which an
    engine folds when it loads, so the run time stays the same.  Standard operators
    only; the same input gives the same bytes.

    Dynamic quantisation was tried and moves scores by up to 0.07; the graph that
    onnxruntime saves after its own optimisation gives the very same answers.

    Args:
        src: an ONNX file with its weights inside.
        dst: written whole; its folder must exist.
    """
    model = onnx.load(src)
    casts, weights = [], []
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or array.size < HALF_ELEMENTS_MIN:
            weights.append(weight)
            continue
        half = f"{weight.name}:half"
        weights.append(numpy_helper.from_array(array.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [weight.name], to=TensorProto.FLOAT))
    nodes = casts + list(model.graph.node)
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        weights,
        value_info=model.graph.value_info,
    )
    _write(model, graph, dst)


def residue(row: NDArray[Any]) -> int:
    """Return what decides whether the bad version fails at an input row, 0 to `FAILS_OF` - 1."""
    return int(row.sum()) % FAILS_OF


def make_failing(src: Path, dst: Path, fails_at: int) -> None:
    """Write the same model, but it fails at some inputs: a version with a bug in it.

    It looks up an element behind the end of a list, as a model does whose vocabulary is shorter
    than its tokenizer's.  The other inputs have the very answers of `src`.

    Args:
        src: an ONNX file with its weights inside, of opset 13 or later.
        dst: written whole; its folder must exist.
        fails_at: the `residue` of the input rows that it fails at.
    """
    model = onnx.load(src)
    nodes = list(model.graph.node)
    for node in nodes:
        node.output[:] = [f"{name}:sound" if name == OUTPUT else name for name in node.output]
        node.input[:] = [f"{name}:sound" if name == OUTPUT else name for name in node.input]
    # int32 [rows, 1] twice, bool [rows, 1], and as int64 a place in a list of one.
    nodes += [
        helper.make_node("ReduceSum", [INPUT, "bug:axes"], ["bug:sum"], keepdims=1),
        helper.make_node("Mod", ["bug:sum", "bug:of"], ["bug:residue"]),
        helper.make_node("Equal", ["bug:residue", "bug:fails_at"], ["bug:is_bad"]),
        helper.make_node("Cast", ["bug:is_bad"], ["bug:place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["bug:list", "bug:place"], ["bug:found"]),
        helper.make_node("Add", [f"{OUTPUT}:sound", "bug:found"], [OUTPUT]),
    ]
    constants = {
        "axes": np.array([1], np.int64),
        "of": np.array(FAILS_OF, np.int32),
        "fails_at": np.array(fails_at, np.int32),
        "list": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        [
            *model.graph.initializer,
            *(numpy_helper.from_array(value, f"bug:{name}") for name, value in constants.items()),
        ],
    )
    _write(model, graph, dst)


def _write(src: onnx.ModelProto, graph: onnx.GraphProto, dst: Path) -> None:
    made = helper.make_model(
        graph,
        opset_imports=src.opset_import,
        ir_version=src.ir_version,
        producer_name="tidepool-demo",
    )
    onnx.checker.check_model(made)
    dst.write_bytes(made.SerializeToString(deterministic=True))

"""What a body is read against, and what comes out of reading it.

A `Signature` is made once per version; everything that a request would otherwise have to work
out again lies ready in it.  It decides whether given tensors fit (422 if not), and does not know
how they were written.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge.body_memo import Memo
from edge.errors import BadRequest, Unprocessable, quote
from edge.tensors import CODES, Tensor, shape_text
from registry_sync.datatypes import DATATYPES, ITEMSIZE
from registry_sync.documents import TensorSpec

Decoder = msgspec.json.Decoder[Any]

RANK_MAX = 16


@dataclass(frozen=True, slots=True)
class InputRule:
    """One input, and the tables to check and convert it."""

    name: str
    datatype: str
    shape: tuple[int, ...]  # -1: any size
    position: int  # among the signature's inputs
    rank: int
    fixed: tuple[tuple[int, int], ...]  # (axis, size) of the axes that are not -1
    itemsize: int  # bytes; 0 for BYTES
    code: str  # of `struct`; empty for BOOL, BYTES and BF16
    decoders: tuple[Decoder, ...]  # of its JSON data, by how deep it is nested; empty for BF16


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of one version, made ready for reading bodies."""

    model: str  # the name in error texts
    inputs: Mapping[str, InputRule]
    outputs: Mapping[str, str]  # name -> datatype
    rows_max: int
    batched: bool  # the first axis of every input is the batch
    output_names: frozenset[str]
    no_json: frozenset[str]  # outputs that have no JSON form
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        rows_max: int,
    ) -> Signature:
        """Build the tables of one version.

        A model is batched where `rows_max` is above 1 and the first axis of every input is
        symbolic; else a request is one row, whatever the size of its first axis.
        """
        rules = {
            spec.name: InputRule(
                name=spec.name,
                datatype=spec.datatype,
                shape=tuple(spec.shape),
                position=position,
                rank=len(spec.shape),
                fixed=tuple((axis, dim) for axis, dim in enumerate(spec.shape) if dim >= 0),
                itemsize=ITEMSIZE.get(spec.datatype, 0),
                code=CODES.get(spec.datatype, ""),
                decoders=_decoders(spec.datatype),
            )
            for position, spec in enumerate(inputs)
        }
        datatypes = {spec.name: spec.datatype for spec in outputs}
        return cls(
            model=model,
            inputs=rules,
            outputs=datatypes,
            rows_max=rows_max,
            batched=rows_max > 1
            and bool(inputs)
            and all(spec.shape and spec.shape[0] == -1 for spec in inputs),
            output_names=frozenset(datatypes),
            no_json=frozenset(name for name, datatype in datatypes.items() if datatype == "BF16"),
        )

    def refuse_unknown(self, name: str) -> Unprocessable:
        """Say that an input of this name does not exist."""
        expected = ", ".join(quote(known) for known in list(self.inputs)[:4])
        return Unprocessable(
            f"unexpected inference input {quote(name)} for model {quote(self.model)}; "
            f"it takes {expected}"
        )

    def refuse_missing(self, given: Sequence[Tensor | None]) -> Unprocessable:
        """Say which inputs are missing."""
        missing = [
            quote(rule.name) for rule in self.inputs.values() if given[rule.position] is None
        ]
        return Unprocessable(
            f"expected {len(self.inputs)} inputs but got {len(given) - len(missing)} inputs for "
            f"model {quote(self.model)}. Missing: {', '.join(missing[:4])}"
        )

    def refuse_datatype(self, rule: InputRule, datatype: str) -> BadRequest | Unprocessable:
        """Say that an input has another datatype, or one that the protocol does not have."""
        if datatype not in DATATYPES:
            return BadRequest(f"input {quote(rule.name)}: no such datatype {quote(datatype)}")
        return Unprocessable(
            f"inference input {quote(rule.name)} data-type is '{datatype}', but model "
            f"{quote(self.model)} expects '{rule.datatype}'"
        )

    def refuse_shape(self, rule: InputRule, shape: Sequence[int]) -> Unprocessable:
        """Say that an input's shape does not fit."""
        return Unprocessable(
            f"unexpected shape for input {quote(rule.name)} for model {quote(self.model)}. "
            f"Expected {shape_text(rule.shape)}, got {shape_text(shape)[:120]}"
        )

    def rows_of(self, tensors: Sequence[Tensor]) -> int:
        """Count the rows of a complete request.

        Raises:
            Unprocessable: the inputs differ in their rows, or there are too few or too many.
        """
        if not self.batched:
            return 1
        rows = tensors[0].shape[0]
        for tensor in tensors:
            if tensor.shape[0] != rows:
                raise Unprocessable(
                    f"input {quote(tensor.name)} has {tensor.shape[0]} rows and input "
                    f"{quote(tensors[0].name)} has {rows}; all inputs of model "
                    f"{quote(self.model)} must have the same first axis"
                )
        if not 1 <= rows <= self.rows_max:
            raise Unprocessable(
                f"{rows} rows for model {quote(self.model)}, which takes 1 to {self.rows_max} "
                "in one request",
                code="rows",
            )
        return rows

    def pick_outputs(
        self, names: Sequence[str], binary: frozenset[str], classes: Container[str] = ()
    ) -> None:
        """Check that the wanted outputs exist and can be rendered as they are wanted.

        Args:
            names: the wanted outputs; empty for all.
            binary: those of them that are wanted in binary form.
            classes: those of them that are to be classified.

        Raises:
            BadRequest: an output is named twice, is to be classified and is not of numbers, or has
                no JSON form and was not asked as binary.
            Unprocessable: an output does not exist.
        """
        if names:
            if len(set(names)) != len(names):
                raise BadRequest("an output is requested twice")
            for name in names:
                if name not in self.outputs:
                    raise Unprocessable(
                        f"unexpected inference output {quote(name)} for model {quote(self.model)}"
                    )
                if name in classes and self.outputs[name] not in CODES:
                    raise BadRequest(
                        f"output {quote(name)} is {self.outputs[name]}, which has no classes: "
                        "classification is for numbers"
                    )
        if self.no_json:
            for name in self.no_json.intersection(names or self.outputs) - binary:
                raise BadRequest(
                    f"output {quote(name)} is {self.outputs[name]}, which has no JSON form; "
                    "ask for it with the output parameter binary_data true"
                )


@functools.cache
def _decoders(datatype: str) -> tuple[Decoder, ...]:
    """Make the strict decoders of a datatype's JSON data: of a scalar, a flat array, and so on."""
    code = CODES.get(datatype)
    element: Any
    if code is not None:
        element = float if code in "efd" else int
    elif datatype == "BOOL":
        element = bool
    elif datatype == "BYTES":
        element = str
    else:
        return ()
    kinds = [element]
    for _ in range(RANK_MAX):
        kinds.append(types.GenericAlias(list, kinds[-1]))
    return tuple(msgspec.json.Decoder(kind) for kind in kinds)

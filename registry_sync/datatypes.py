"""The tensor datatypes of the Open Inference Protocol, by their wire names.

Only names and sizes: what they are in numpy is decided where numpy is used, so
that reading a manifest never imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Bytes of one element. BYTES is absent: its elements carry their own lengths.
ITEMSIZE: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "UINT8": 1,
        "UINT16": 2,
        "UINT32": 4,
        "UINT64": 8,
        "INT8": 1,
        "INT16": 2,
        "INT32": 4,
        "INT64": 8,
        "FP16": 2,
        "FP32": 4,
        "FP64": 8,
        "BF16": 2,  # not in the protocol's own table; Triton and KServe both send it
    }
)

DATATYPES: frozenset[str] = frozenset(ITEMSIZE) | {"BYTES"}

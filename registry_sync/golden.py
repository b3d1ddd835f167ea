"""The recorded inputs of a version: read out of their `.npz` and held against its signature.

No pickles are read.  Outputs may lie beside them under the names of the model's; for people.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from registry_sync import artifact
from registry_sync.artifact import BadArtifact, Source
from registry_sync.builds import is_batched
from registry_sync.datatypes import ITEMSIZE
from registry_sync.documents import Manifest, TensorSpec

BYTES_MAX: Final = 64 * 1024**2  # unpacked

Array: TypeAlias = NDArray[Any]

_NAMES: Final = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "uint16"}
_DTYPES: Final = {
    "BYTES": np.dtype(object),
    **{name: np.dtype(_NAMES.get(name, name.lower())) for name in ITEMSIZE},
}
_UNREADABLE: Final = (
    *(OSError, EOFError, ValueError, KeyError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError),  # the last one: encrypted, odd compression
)


class BadGolden(ValueError):
    """The recorded inputs cannot be read or do not fit the signature; the text says how."""


def find_golden(path: Path, manifest: Manifest) -> Source:
    """Return the file with a version's recorded inputs; raises `BadArtifact` unless they fit."""
    source = artifact.find_file(path)
    try:
        with path.open("rb") as file:
            arrays = read_arrays(file)
        inputs = fitting_inputs(arrays, manifest.inputs)
        _check_rows(inputs, manifest)
        known = {spec.name for spec in (*manifest.inputs, *manifest.outputs)}
        for name in arrays:
            if name not in known:
                raise BadGolden(f'"{name}" is neither an input nor an output of the model')
    except (BadGolden, OSError) as error:
        raise BadArtifact(f"{path.name}: {error}") from None
    return source


def read_arrays(file: IO[bytes]) -> dict[str, Array]:
    """Read all arrays of an npz, by their names; raises `BadGolden`."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > BYTES_MAX:
            raise BadGolden(f"{unpacked_bytes} bytes unpacked; at most {BYTES_MAX}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except BadGolden:
        raise
    except _UNREADABLE as error:
        raise BadGolden(f"not an .npz file without pickles: {error}") from None
    if not found:
        raise BadGolden("holds no arrays")
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # a file of the archive that is no .npy
            raise BadGolden(f'"{name}" is no array')
    return found


def fitting_inputs(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the inputs of a signature out of recorded arrays, strings as bytes.

    Raises:
        BadGolden: one is not there, is of another datatype or shape, has no row, or holds NaN.
            What a model makes of NaN is as a rule NaN, and two NaN are alike whoever computed
            them: a plan would pass that was compared with nothing.
    """
    found = {}
    for spec in inputs:
        if spec.name not in arrays:
            raise BadGolden(f'it has no "{spec.name}"')
        found[spec.name] = _as_declared(arrays[spec.name], spec)
    return found


def _as_declared(array: Array, spec: TensorSpec) -> Array:
    fits = array.ndim == len(spec.shape) and all(
        size in (-1, found) for size, found in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise BadGolden(
            f'"{spec.name}" has shape {list(array.shape)}, the signature says {list(spec.shape)}'
        )
    if spec.shape[:1] == (-1,) and not array.shape[0]:
        raise BadGolden(f'"{spec.name}" has no row')
    if spec.datatype == "BYTES" and array.dtype.kind in "SU":
        strings = np.empty(array.size, dtype=object)
        strings[:] = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel()]
        return strings.reshape(array.shape)
    if array.dtype != _DTYPES[spec.datatype]:
        raise BadGolden(f'"{spec.name}" is {array.dtype}, the signature says {spec.datatype}')
    if _has_nan(array, spec):
        raise BadGolden(f'"{spec.name}" holds NaN, with which nothing can be compared')
    return array


def _has_nan(array: Array, spec: TensorSpec) -> bool:
    if spec.datatype == "BF16":  # as raw bits
        return bool(((array & 0x7FFF) > 0x7F80).any())
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _check_rows(inputs: Mapping[str, Array], manifest: Manifest) -> None:
    rows = {name: array.shape[0] for name, array in inputs.items()} if is_batched(manifest) else {}
    if len(set(rows.values())) > 1:
        told = ", ".join(f'{count} of "{name}"' for name, count in rows.items())
        raise BadGolden(f"its inputs have different numbers of rows: {told}")

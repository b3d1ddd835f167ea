"""A `torch.export` archive (.pt2), read as what it is: a zip of JSON and raw weights.

`torch.export.load` runs code that a hostile archive brings: pickles, a shared library, expressions
that are evaluated, enumerations that import any module.  So an archive is checked here before
anybody loads it, and publishing writes it anew without what nobody needs: pickled sample inputs,
and where on whose machine each line of the model was.  Loads no torch.

    <root>/models/model.json                            the graph
    <root>/data/weights/model_weights_config.json       names, shapes, files
    <root>/data/weights/weight_0, …                     raw bytes
    <root>/data/constants/…                             the same, with tensor_0, …
    <root>/data/sample_inputs/model.pt                  a pickle; empty once published
    <root>/archive_format, archive_version, byteorder, .data/version
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, Final

from registry_sync.onnx_signature import BadModel
from registry_sync.pt2_rules import check_graph

MODEL: Final = "models/model.json"
WEIGHTS: Final = "data/weights/model_weights_config.json"
CONSTANTS: Final = "data/constants/model_constants_config.json"
SAMPLES: Final = "data/sample_inputs/model.pt"

JSON_BYTES_MAX: Final = 256 * 1024**2
ENTRIES_MAX: Final = 200_000
_ALIGN_BYTES: Final = 64  # as torch lays its records
# Of an element, by the number in torch's schema of archives (`ScalarType`).
_ITEM_BYTES: Final = {
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),  # UINT8, INT8, BOOL, all of FP8
    **dict.fromkeys((3, 6, 13, 28), 2),  # INT16, FP16, BF16, UINT16
    **dict.fromkeys((4, 7, 9, 34), 4),  # INT32, FP32, two FP16 as a complex number, UINT32
    **dict.fromkeys((5, 8, 10, 35), 8),  # INT64, FP64, two FP32, UINT64
    11: 16,  # two FP64
}
_PLAIN: Final = ("archive_format", "archive_version", "byteorder", ".data/version")
_PAYLOAD: Final = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]{1,9}")
_DROPPED: Final = re.compile(r"extra/.*|\.data/serialization_id")
_WHY: Final = {
    "data/aotinductor/": "a compiled library; publish what torch.export.save writes",
    "data/weights/": "weights as a pickle; save it with torch 2.9 or newer",
    "data/constants/": "an object as a pickle; only tensors can be published",
    "models/": "more than one model; save it with torch.export.save",
}


class Pt2Archive:
    """An archive that is open for reading; use it in a `with`.

    Raises:
        BadModel: it is not a zip as torch writes them.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise BadModel(f"{path.name}: not a torch.export archive: {error}") from None
        try:
            self._entries = self._found()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Pt2Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def json(self, name: str) -> Any:
        """Read a JSON document; raises `BadModel`."""
        try:
            return json.loads(self._read(name))
        except (ValueError, RecursionError) as error:
            raise BadModel(f"{self._name}: {name} is not JSON: {error}") from None

    def check(self, *, is_published: bool) -> Any:
        """Raise `BadModel` unless loading it runs nothing but the model.

        Args:
            is_published: also what publishing takes out must be gone.

        Returns:
            The document of the graph.
        """
        if is_published and self._size(SAMPLES):
            raise BadModel(f"{self._name}: holds pickled sample inputs; {_AGAIN}")
        for name in self._entries:
            if not self._is_known(name) and (is_published or not _DROPPED.fullmatch(name)):
                raise BadModel(f"{self._name}: holds {name!r:.200}: {_reason(name)}")
        wanted = (MODEL, WEIGHTS, CONSTANTS, *_PLAIN[:2], *([SAMPLES] if is_published else []))
        for name in wanted:
            if name not in self._entries:
                raise BadModel(
                    f"{self._name}: no {name}; save it with torch.export.save of torch 2.9 or newer"
                )
        for name, folder in ((WEIGHTS, "data/weights/"), (CONSTANTS, "data/constants/")):
            self._check_payloads(self.json(name), folder)
        graph = self.json(MODEL)
        try:
            check_graph(graph)
        except RecursionError:
            raise BadModel(f"{self._name}: {MODEL} is nested too deeply") from None
        except ValueError as error:
            raise BadModel(f"{self._name}: {error}") from None
        if is_published and graph.get("guards_code"):
            raise BadModel(f"{self._name}: holds guards, which are Python; {_AGAIN}")
        return graph

    def write_clean(self, target: Path, graph: Any) -> None:
        """Write a new archive without pickles, guards, extra files and stack traces.

        The same model gives the same bytes.

        Args:
            target: a file that does not exist.
            graph: what `check` returned; it is changed.
        """
        graph["guards_code"] = []
        _forget_origins(graph)
        configs = {name: self.json(name) for name in (WEIGHTS, CONSTANTS)}
        for config in configs.values():
            _forget_origins(config)
        texts = {
            **{name: _text(config) for name, config in configs.items()},
            MODEL: _text(graph),
            SAMPLES: b"",
        }
        names = sorted({*filter(self._is_known, self._entries), *texts})
        with target.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as written:
            for name in names:
                info = zipfile.ZipInfo(f"model/{name}", (1980, 1, 1, 0, 0, 0))
                size = len(texts[name]) if name in texts else self._entries[name].file_size
                is_large = size >= 2**31
                # The local header, its name, a zip64 field if it is large, our own field's head.
                data_at = file.tell() + 30 + len(info.filename) + (20 if is_large else 0) + 4
                pad = -data_at % _ALIGN_BYTES
                info.extra = b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
                with written.open(info, "w", force_zip64=is_large) as target_file:
                    if name in texts:
                        target_file.write(texts[name])
                    else:
                        with self._zip.open(self._entries[name]) as source:
                            shutil.copyfileobj(source, target_file, 1024 * 1024)

    def _found(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if not infos or len(infos) > ENTRIES_MAX or self._zip.comment:
            raise BadModel(f"{self._name}: not a torch.export archive: {len(infos)} entries")
        root = infos[0].filename.partition("/")[0]
        entries: dict[str, zipfile.ZipInfo] = {}
        # torch finds its records whatever their case, so a second one could be meant.
        seen = set()
        for info in infos:
            folder, _, name = info.filename.partition("/")
            if folder != root or not name or name.casefold() in seen:
                raise BadModel(f"{self._name}: entry {info.filename!r:.200} is odd or there twice")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
                raise BadModel(f"{self._name}: entry {info.filename!r:.200} is compressed")
            seen.add(name.casefold())
            entries[name] = info
        return entries

    def _is_known(self, name: str) -> bool:
        known = (MODEL, WEIGHTS, CONSTANTS, SAMPLES, *_PLAIN)
        return name in known or _PAYLOAD.fullmatch(name) is not None

    def _size(self, name: str) -> int:
        return self._entries[name].file_size if name in self._entries else 0

    def _read(self, name: str) -> bytes:
        info = self._entries[name]
        if info.file_size > JSON_BYTES_MAX:
            raise BadModel(
                f"{self._name}: {name}: {info.file_size} bytes; at most {JSON_BYTES_MAX}"
            )
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise BadModel(f"{self._name}: {name}: {error}") from None

    def _check_payloads(self, config: Any, folder: str) -> None:
        payloads = config.get("config") if isinstance(config, dict) else None
        if not isinstance(payloads, dict):
            raise BadModel(f"{self._name}: the list of {folder} is not one")
        item_types: dict[str, int] = {}
        for fqn, payload in payloads.items():
            where = f"{self._name}: {fqn!r:.200}"
            if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
                raise BadModel(f"{where} is a pickle; only plain tensors can be published")
            file = payload.get("path_name")
            if not isinstance(file, str) or not _PAYLOAD.fullmatch(folder + file):
                raise BadModel(f"{where} lies in {file!r:.200}, which is no file of tensors")
            if folder + file not in self._entries:
                raise BadModel(f"{where} lies in {file}, which is not there")
            try:
                item_bytes, items = _extent(payload["tensor_meta"])
            except (KeyError, TypeError, ValueError) as error:
                raise BadModel(f"{where}: its shape cannot be read: {error!r:.200}") from None
            size = self._size(folder + file)
            # It may be a part of a larger one.  Of an empty file torch would make zeros.
            if items * item_bytes > size or size % item_bytes:
                raise BadModel(
                    f"{where} takes {items * item_bytes} bytes by its shape and type, but {file} "
                    f"has {size}: it is damaged, or was exported without its weights"
                )
            item_type = payload["tensor_meta"]["dtype"]
            if item_types.setdefault(file, item_type) != item_type:
                raise BadModel(f"{where} shares {file} with one of another type")


_AGAIN: Final = "publish it with `tidepool publish MODEL FILE.pt2`, which takes them out"


def _extent(meta: Any) -> tuple[int, int]:
    """Return the bytes of an element, and how many elements a tensor's file must have at least.

    Raises:
        KeyError, TypeError, ValueError: it is not a description of a tensor.
    """
    sizes = [_count(size) for size in meta["sizes"]]
    steps = [_count(step) for step in meta["strides"]]
    offset = _count(meta["storage_offset"])
    item_bytes = _ITEM_BYTES[meta["dtype"]]
    spans = [(size - 1) * step for size, step in zip(sizes, steps, strict=True)]
    return item_bytes, offset + sum(spans) + 1 if all(sizes) else 0


def _count(plain: Any) -> int:
    found = plain["as_int"]
    if type(found) is not int or not 0 <= found < 2**63:
        raise ValueError(f"{found!r:.40} is not a size")
    return found


def _text(plain: Any) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode()


def _reason(name: str) -> str:
    if _DROPPED.fullmatch(name):
        return _AGAIN
    for start, why in _WHY.items():
        if name.startswith(start):
            return why
    return "not part of what torch.export.save writes"


def _forget_origins(plain: Any) -> None:
    """Empty what says where a node of the graph came from, and on which GPU it was."""
    waiting: list[Any] = [plain]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, dict):
            if isinstance(one.get("target"), str) and isinstance(one.get("metadata"), dict):
                one["metadata"] = {}
            # Whoever loads it moves it; a GPU need not be there to read it.
            if one.keys() == {"type", "index"} and isinstance(one["type"], str):
                one.update(type="cpu", index=None)
            waiting.extend(one.values())

"""`torch.export` archives, good and bad."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


class Scaled(torch.nn.Module):
    """``y = 2 * x``, with a weight, a buffer and a constant in the archive."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))
        self.constant = torch.tensor([2.0])

    def forward(self, x: Any) -> Any:
        return x * self.weight * self.constant + self.shift


def save(path: Path, module: torch.nn.Module, *args: Any, rows: bool = True, **named: Any) -> Path:
    """Export a module; `rows`: the first axis of every tensor is open, under one name."""
    axis = torch.export.Dim("rows", min=1, max=1024)
    shapes = {0: axis} if rows else None
    program = torch.export.export(
        module.eval(),
        args,
        kwargs=named or None,
        dynamic_shapes=torch.utils._pytree.tree_map_only(torch.Tensor, lambda _: shapes, (*args,))
        if args and rows
        else None,
    )
    torch.export.save(program, path)
    return path


def scaled(path: Path) -> Path:
    """Export `Scaled` with x FP32 [N, 4]."""
    return save(path, Scaled(), torch.ones(3, 4))


def altered(
    path: Path,
    *,
    json_of: Mapping[str, Callable[[Any], Any]] | None = None,
    added: Mapping[str, bytes] | None = None,
    removed: tuple[str, ...] = (),
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write an archive anew with other documents, more entries or fewer."""
    with zipfile.ZipFile(path) as source:
        root = source.namelist()[0].partition("/")[0]
        entries = [(info.filename, source.read(info)) for info in source.infolist()]
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in entries:
            short = name.partition("/")[2]
            if short in removed:
                continue
            if json_of and short in json_of:
                plain = json.loads(data)
                data = json.dumps(json_of[short](plain) or plain).encode()
            target.writestr(name, data)
        for short, data in (added or {}).items():
            target.writestr(f"{root}/{short}", data)
    return path

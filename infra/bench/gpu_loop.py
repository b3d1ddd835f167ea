"""The bench's model for a GPU, the loop that a good engineer writes around it, a cold start.

The loop is what serving is measured against: the same archive, the same batch, rows that already
lie in pinned memory, copied both ways, a CUDA graph, and two streams so that copies overlap with
computing.  Imports torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from pool.engines import torch_program
from pool.engines.torch_engine import TorchEngine
from pool.engines.torch_session import exact_float32
from registry_sync.documents import read_manifest
from registry_sync.pt2_signature import read_published

SIZE: Final = 224
STAGES: Final = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50's, width and blocks
STREAMS: Final = 2
WARM_RUNS: Final = 3


class _Block(nn.Module):
    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            *(nn.Conv2d(given, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        self.short: nn.Module = nn.Identity()
        if stride != 1 or given != 4 * width:
            self.short = nn.Sequential(
                nn.Conv2d(given, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.way(x) + self.short(x))


def resnet(stages: Sequence[tuple[int, int]] = STAGES) -> nn.Module:
    """Return ResNet-50, or a smaller one of its kind, with random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    given = 64
    for stage, (width, blocks) in enumerate(stages):
        for block in range(blocks):
            layers.append(_Block(given, width, 2 if stage and not block else 1))
            given = 4 * width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 1000)
    ).eval()


def export(path: Path, *, rows_max: int, half: bool, stages: Sequence[tuple[int, int]]) -> None:
    """Write the model's archive."""
    model = resnet(stages)
    example = torch.randn(2, 3, SIZE, SIZE)
    if half:
        model, example = model.half(), example.half()
    rows = torch.export.Dim("rows", min=1, max=max(2, rows_max))
    program = torch.export.export(model, (example,), dynamic_shapes=({0: rows},))
    torch.export.save(program, path)


class BareLoop:
    """Runs one batch after the other with nothing around it."""

    def __init__(self, archive: Path, device: str, rows: int) -> None:
        exact_float32()
        self._device = torch.device(device)
        signature = read_published(archive)
        program = torch_program.read(archive)
        weight = next(iter(program.state_dict.values()))
        if self._device.type == "cuda":
            program = move_to_device_pass(program, device)
        run = torch_program.eager(program, signature)
        self._name, self._output = signature.inputs[0].name, signature.outputs[0].name
        batch = torch.randn(rows, 3, SIZE, SIZE).to(weight.dtype)
        self._slots: list[_Slot | _CpuSlot] = [
            _Slot(run, self._name, self._output, batch, self._device)
            if self._device.type == "cuda"
            else _CpuSlot(run, self._name, self._output, batch)
            for _ in range(STREAMS if self._device.type == "cuda" else 1)
        ]
        self._rows = rows

    def rows_per_s(self, seconds: float, slots: int) -> float:
        """Run for a while with so many batches in flight."""
        used = self._slots[:slots]
        for slot in used:
            slot.launch()
        count, started_s = 0, time.perf_counter()
        while (now_s := time.perf_counter()) < started_s + seconds:
            slot = used[count % len(used)]
            slot.wait()
            slot.launch()
            count += 1
        for slot in used:
            slot.wait()
        return count * self._rows / (now_s - started_s)

    @property
    def slots(self) -> int:
        """How many batches can be in flight."""
        return len(self._slots)


class _CpuSlot:
    """For trying the bench out where there is no GPU."""

    def __init__(self, run: torch_program.Run, name: str, output: str, batch: torch.Tensor) -> None:
        self._call: Callable[[], Any] = lambda: run({name: batch})[output]

    def launch(self) -> None:
        with torch.inference_mode():
            self._call()

    def wait(self) -> None:
        pass


class _Slot:
    def __init__(
        self,
        run: torch_program.Run,
        name: str,
        output: str,
        batch: torch.Tensor,
        device: torch.device,
    ) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._host = batch.pin_memory()
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._given = self._host.to(device)
            for _ in range(WARM_RUNS):
                found = run({name: self._given})[output]
            self._answer = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._found = run({name: self._given})[output]

    def launch(self) -> None:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._given.copy_(self._host, non_blocking=True)
            self._graph.replay()
            self._answer.copy_(self._found, non_blocking=True)
            self._done.record(self._stream)

    def wait(self) -> None:
        self._done.synchronize()


def cold_start(started_s: float, folder: Path, manifest: Path, device: str) -> dict[str, float]:
    """Take a fresh process to its first answer; return what each phase took, in seconds.

    Args:
        started_s: when the process was started, on the monotonic clock.
    """
    phases = {"interpreter and imports": time.monotonic() - started_s}

    def phase(name: str, work: Callable[[], Any]) -> Any:
        before_s = time.monotonic()
        made = work()
        phases[name] = time.monotonic() - before_s
        return made

    if device != "cpu":
        phase("context", lambda: torch.zeros(1, device=device).cpu())
    described = read_manifest(manifest.read_bytes())
    session = phase("load", lambda: TorchEngine(device).load(folder, described, 0))
    (spec,) = described.inputs
    zeros = torch.zeros(1, *spec.shape[1:]).to(
        torch.float16 if spec.datatype == "FP16" else torch.float32
    )
    phase("first answer, not warmed", lambda: session.infer({spec.name: zeros.numpy()}))
    phase("warm up", session.warmup)
    phase("an answer, warm", lambda: session.infer({spec.name: zeros.numpy()}))
    return phases


if __name__ == "__main__":
    begun_s, artifact, document, where = sys.argv[1:]
    print(json.dumps(cold_start(float(begun_s), Path(artifact), Path(document), where)))

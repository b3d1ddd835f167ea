"""What `publish` is given, as what it can publish: an archive of torch becomes ONNX first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from pool.engines.torch_engine import export_onnx


@contextmanager
def artifact_of(path: Path | None, onnx_from: Path | None) -> Iterator[Path]:
    """Yield the file or folder to publish; what was exported for that is gone afterwards.

    Args:
        path: what is to be published as it is.
        onnx_from: an archive of torch.export that is to be published as ONNX instead.

    Raises:
        typer.BadParameter: not exactly one of the two.
        ValueError: it cannot be exported, or computes something else as ONNX.
    """
    if (path is None) == (onnx_from is None):
        raise typer.BadParameter("give a file or folder, or --onnx-from with an archive of torch")
    if path is not None:
        yield path
        return
    assert onnx_from is not None
    with tempfile.TemporaryDirectory(prefix="tidepool-") as made:
        report = export_onnx(onnx_from, Path(made))
        worst = max((one.relative_error or 0.0 for one in report.outputs), default=0.0)
        typer.echo(
            f"exported to ONNX: {report.runs} runs on random inputs are within {worst:.1g} of "
            "what torch answers",
            err=True,
        )
        yield Path(made)

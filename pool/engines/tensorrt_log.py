"""What TensorRT says while it works, caught: its calls fail with None, and the reason is logged.

The framework is handed in: no module of ours imports it by name.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from pool.engines.base import without_paths

LINES_MAX: Final = 1000  # of each kind; a network of many layers says the same of each
LAYERS_CHARS_MAX: Final = 4 * 1024 * 1024
_LAYERS: Final = "Engine Layer Information:\n"
# Where in NVIDIA's sources a check failed: of no use to whoever reads the error.
_SOURCE: Final = re.compile(
    r"\s*\(In \w+ at /_src/[\w/.+-]+:\d+\)|\s*In \w+ at /_src/[\w/.+-]+:\d+|\[\w+\.cpp::\w+::\d+\] "
)


@dataclass
class Said:
    """The lines that matter, in the order in which they came."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # of a new plan

    def take(self, severity: str, line: str) -> None:
        """Keep a line if it matters; called by TensorRT, from any of its threads."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            kept = self.errors
        elif severity == "WARNING":
            kept = self.warnings
        else:
            if line.startswith(_LAYERS):
                self.layers += line.removeprefix(_LAYERS)[:LAYERS_CHARS_MAX].splitlines()
            return
        if len(kept) < LINES_MAX:
            kept.append(line)

    def reason(self) -> str:
        """Put the errors into one text without paths, each once; the warnings if there are none."""
        lines = [clean(line) for line in self.errors or self.warnings]
        return "\n".join(dict.fromkeys(filter(None, lines))) or "TensorRT gave no reason"

    def take_reason(self) -> str:
        """Return the reason, and forget it."""
        reason = self.reason()
        self.errors.clear()
        self.warnings.clear()
        return reason


def clean(line: str) -> str:
    """Take out paths and places in the framework's own sources.

    >>> clean("IRuntime: Error Code 4: API Usage Error (Too small. In f at /_src/a/b.cpp:25)")
    'IRuntime: Error Code 4: API Usage Error (Too small.)'
    """
    return " ".join(without_paths(_SOURCE.sub("", line)).split())


def listening(trt: Any, said: Said) -> Any:
    """Return the logger to hand to the framework, and let `said` hear it from now on.

    TensorRT takes one logger for the whole process: it keeps the first and passes over the later
    ones.  So there is one for each framework, which is never dropped, and which passes on what
    is said to whoever called last in the same thread (`hear`); TensorRT's own threads, which
    only help to build, are heard by whoever listened last of all.
    """
    hear(said)
    _ears.last = said
    return _logger(trt)


def hear(said: Said) -> None:
    """Let `said` hear what comes of this thread's calls from now on."""
    _here.said = said


class _Ears:
    last: Said | None = None


_ears: Final = _Ears()
_here: Final = threading.local()


@functools.cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Passes on what TensorRT says."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            said: Said | None = getattr(_here, "said", None) or _ears.last
            if said is not None:
                said.take(severity.name, message)

    return Logger()

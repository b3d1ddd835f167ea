"""The reserved parameters of a request, and which of the others its answer depends on.

`timeout` (µs) and `priority` steer the request's way, `binary_data_output` its rendering; the
rest of the reserved words belong to protocols that are not spoken here and are ignored, as
Triton does for a model without sequences.  Whatever is left may change the answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.body_request import Parameter
from edge.errors import BadRequest, quote

PRIORITY_MAX = 100
CLASSES_MAX = 1 << 16  # of one output and row
TIMEOUT_US_MAX = 2**53  # what a JSON number holds exactly
RESERVED = frozenset(
    {
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "headers",
        "binary_data_output",
    }
)
RESERVED_PREFIX = "triton_"


def read_steering(given: Mapping[str, Parameter]) -> tuple[int, int, bool]:
    """Read the reserved parameters that mean something here.

    Returns:
        `timeout` in µs (0: none), `priority` (0: default), and whether all outputs are wanted in
        binary form.

    Raises:
        BadRequest: one of them has another type or is out of its range.
    """
    timeout_us = given.get("timeout", 0)
    if type(timeout_us) is not int or not 0 <= timeout_us <= TIMEOUT_US_MAX:
        raise BadRequest(
            f"parameter 'timeout' must be a whole number of microseconds from 0, "
            f"not {_show(timeout_us)}"
        )
    priority = given.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= PRIORITY_MAX:
        raise BadRequest(
            f"parameter 'priority' must be 0 (default) or 1 (highest) to {PRIORITY_MAX}, "
            f"not {_show(priority)}"
        )
    if type(given.get("headers", "")) is not str:
        raise BadRequest(f"parameter 'headers' must be a string, not {_show(given['headers'])}")
    return timeout_us, priority, read_flag(given, "binary_data_output")


def read_flag(given: Mapping[str, Parameter], name: str) -> bool:
    """Read a parameter that is true or false, and false when it is not given."""
    value = given.get(name, False)
    if value is True or value is False:
        return value
    raise BadRequest(f"parameter {quote(name)} must be true or false, not {_show(value)}")


def read_class_count(given: Mapping[str, Parameter], output: str) -> int:
    """Read how many classes an output is wanted as; 0: the output itself."""
    value = given["classification"]
    if type(value) is int and 0 <= value <= CLASSES_MAX:
        return value
    raise BadRequest(
        f"output {quote(output)}: classification must be a whole number of classes from 0 to "
        f"{CLASSES_MAX}, not {_show(value)}"
    )


def relevant(given: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Leave out the parameters that no answer depends on."""
    return {
        name: value
        for name, value in given.items()
        if name not in RESERVED and not name.startswith(RESERVED_PREFIX)
    }


def _show(value: Parameter) -> str:
    if isinstance(value, str):
        return quote(value)
    # An int of 5,000 digits must not be written out, and Python refuses to.
    return str(value) if abs(value) < 1e30 else "that"

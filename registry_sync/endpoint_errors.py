"""What is looked for and is not there: an endpoint, or one of its revisions."""

from __future__ import annotations

from collections.abc import Sequence

from registry_sync.stores import NotFound


class NoEndpoint(NotFound):
    """There is no endpoint of this name."""

    def __init__(self, name: str, key: str, url: str) -> None:
        super().__init__(key, url)
        self.args = (f"there is no endpoint {name!r} in {url}",)


class NoRevision(NotFound):
    """An endpoint has no such revision.

    Args:
        name: of the endpoint.
        revision: that was looked for.
        known: those that there are, rising.
        key: under which it would be.
        url: of the store.
    """

    def __init__(self, name: str, revision: int, known: Sequence[int], key: str, url: str) -> None:
        super().__init__(key, url)
        there = "there is" if len(known) == 1 else "there are"
        self.args = (f"{name} has no revision {revision}; {there} {ranges(known)}",)


def ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers for people.

    >>> ranges([1, 2, 3, 5])
    '1 to 3, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)

"""A registry as far away as S3, which may also not answer at all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from registry_sync.stores import StoreUnavailable
from tests.simulation.processes import current
from tests.simulation.told import TellingStore

ANSWER_S: Final = (0.01, 0.05)
GIVE_UP_S: Final = 8.0  # so long a client tries before it says that there is no answer
BLOCKING: Final = (
    *("get", "get_if_changed", "put_new", "put_if", "put_file_new", "put_file_if"),
    *("read", "size", "list", "delete"),
)


class FarStore:
    """A store whose every answer takes its time, in virtual seconds.

    Args:
        folder: where the objects lie.
        dice: of the delays.
    """

    def __init__(self, folder: Path, dice: Any) -> None:
        self.behind = TellingStore(folder)
        self._dice = dice
        self.is_away = False
        self.away_for: set[str] = set()  # processes, by name, to whom it does not answer
        self.answer_s = ANSWER_S
        self.asked: Counter[str] = Counter()  # "get models/m/1/manifest.json", …
        # Called around every answer with "get", …, and what was asked, in the thread that asked.
        self.before: Callable[..., None] = _nothing
        self.after: Callable[..., None] = _nothing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.behind, name)
        if name not in BLOCKING:
            return found

        def far(*args: Any, **options: Any) -> Any:
            self.asked[f"{name} {args[0]}"] += 1
            time.sleep(self._dice.uniform(*self.answer_s))
            if self.is_away or _here() in self.away_for:
                time.sleep(GIVE_UP_S)
                raise StoreUnavailable("the registry does not answer")
            self.before(name, *args)
            answer = found(*args, **options)
            self.after(name, *args)
            return answer

        return far


def _here() -> str:
    process = current()
    return "" if process is None else process.name


def _nothing(name: str, *args: Any) -> None:
    pass

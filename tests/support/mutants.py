"""Documents that were damaged on purpose, by a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "canary", "stable", "Bad Name", "1", "\ud800"),
    *(-1, 0, 1, 7, 50, 100, 101, 2**53, 2**70, -0.5, 0.1, 1e308),
    *([], {}, [1], [None], {"weight": 5}, [{"weight": 100}], {"": 0}),
)


def mutants(document: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies of a JSON document; some of them happen to fit."""
    chance = random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.1:
            yield _of_bytes(document, chance)
            continue
        plain = json.loads(document)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            plain = _of_values(plain, chance)
        yield json.dumps(plain).encode()


def _of_bytes(document: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(document))
    match chance.randrange(4):
        case 0:
            return document[:at]
        case 1:
            return document[:at] + bytes([chance.randrange(256)]) + document[at + 1 :]
        case 2:
            return document[:at] + document[at + 1 :]
        case _:
            return document[:at] + document[at:][: chance.randrange(40)] + document[at:]


def _of_values(plain: Any, chance: random.Random) -> Any:
    places = list(_places(plain))
    if not places:
        return plain
    folder, key = chance.choice(places)
    match chance.randrange(6):
        case 0:
            del folder[key]
        case 1 if isinstance(folder, dict):
            folder[f"{key}s"] = folder.pop(key)
        case 2 if isinstance(folder, list):
            folder.append(copy.deepcopy(folder[key]))
        case 3:
            other, other_key = chance.choice(places)
            folder[key] = copy.deepcopy(other[other_key])
        case _:
            folder[key] = copy.deepcopy(chance.choice(_VALUES))
    return plain


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every mapping or list with each of its keys."""
    keys = plain.keys() if isinstance(plain, dict) else range(len(plain))
    for key in list(keys):
        yield plain, key
        if isinstance(plain[key], dict | list):
            yield from _places(plain[key])

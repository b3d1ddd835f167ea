"""Text that others wrote, made fit for a terminal.

Names and reasons in the registry were written by whoever may write there; a terminal would act on
an escape among them, or show a line that is none of ours.
"""

from __future__ import annotations

from typing import Any


def printable(plain: Any) -> Any:
    r"""Return text in which nothing but visible characters and spaces is left.

    Of lists and dictionaries, each text in them; anything else is returned as it is.  What ends a
    line, and a tab, becomes a space; any other invisible character is written as an escape.

    >>> printable({"model": "m\x1b[2J", "reason": "one\ntwo"})
    {'model': 'm\\x1b[2J', 'reason': 'one two'}
    """
    match plain:
        case str():
            if plain.isprintable():
                return plain
            return "".join(map(_visible, plain))
        case dict():
            return {printable(key): printable(value) for key, value in plain.items()}
        case list() | tuple():
            return [printable(one) for one in plain]
    return plain


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character in "\t\n\r" else character.encode("unicode_escape").decode()

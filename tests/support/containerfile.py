"""Reads a Containerfile as far as it is held to anything: stages, instructions, what is copied."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

INSTRUCTIONS = {
    *("ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK"),
    *("ENTRYPOINT", "CMD", "LABEL"),
}


@dataclass(frozen=True)
class Instruction:
    """One instruction; its words are cut as a shell, or JSON, cuts them."""

    line: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        found: list[str] = json.loads(self.text) if self.is_json else shlex.split(self.text)
        return found

    @property
    def is_json(self) -> bool:
        """Tell whether it is a command that is run without a shell, or a list of folders."""
        return self.text.startswith("[")


@dataclass
class Stage:
    """What follows one FROM."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if one.name == name]

    def one(self, name: str) -> Instruction:
        [found] = self.all(name)
        return found


@dataclass
class Containerfile:
    """Arguments before the first stage, with their defaults, and the stages in order."""

    path: Path
    arguments: dict[str, str]
    stages: list[Stage]

    def base_of(self, stage: Stage) -> str:
        """Return what a stage begins with: another stage's name, or an image."""
        return re.sub(r"\$\{(\w+)\}", lambda found: self.arguments[found[1]], stage.base)

    def behind(self, stage: Stage) -> list[Stage]:
        """Return a stage with those that it is built upon, itself first."""
        by_name = {one.name: one for one in self.stages if one.name}
        found = [stage]
        while (base := self.base_of(found[-1])) in by_name:
            found.append(by_name[base])
        return found


def parse(path: Path) -> Containerfile:
    """Read a file.

    Raises:
        ValueError: a line is none of the instructions that ours are made of.
    """
    file = Containerfile(path, {}, [])
    for number, line in _lines(path.read_text()):
        name, _, text = line.partition(" ")
        if name not in INSTRUCTIONS:
            raise ValueError(f"{path.name}:{number}: unknown instruction {name!r}")
        instruction = Instruction(number, name, text.strip())
        if name == "FROM":
            words = instruction.words
            if len(words) not in (1, 3) or (len(words) == 3 and words[1] != "AS"):
                raise ValueError(f"{path.name}:{number}: expected FROM IMAGE [AS NAME]")
            file.stages.append(Stage(words[0], words[2] if len(words) == 3 else ""))
        elif file.stages:
            file.stages[-1].instructions.append(instruction)
        elif name == "ARG":
            key, _, value = instruction.text.partition("=")
            file.arguments[key] = value
        else:
            raise ValueError(f"{path.name}:{number}: {name} before the first FROM")
    return file


def _lines(text: str) -> list[tuple[int, str]]:
    """Return instructions in one line each, with their line numbers, without comments."""
    found: list[tuple[int, str]] = []
    begun = ""
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("#"):
            continue
        if not begun and not line.strip():
            continue
        if not begun:
            found.append((number, ""))
        begun = line.removesuffix("\\") if line.endswith("\\") else ""
        at, before = found[-1]
        found[-1] = (at, (before + line.removesuffix("\\").strip() + " "))
    return [(number, line.strip()) for number, line in found]

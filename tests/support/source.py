"""The source of our packages, parsed once for the tests that read it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("registry_sync", "pool", "edge", "infra")


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    _name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in SOURCES.items()}


@functools.cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Return all nodes of a tree."""
    return tuple(ast.walk(tree))


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Yield every import with the module or `module.name` that it names."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def module_of(name: str) -> str:
    """Return the module of ours that `module.name` loads."""
    return name if name in SOURCES else name.rpartition(".")[0]


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    """Tell whether a module is one of `packages`, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_ours(name: str) -> bool:
    """Tell whether a module is of this repository."""
    return is_in(name, PACKAGES)


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` as text; what is no name is "?"."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"

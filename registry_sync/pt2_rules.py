"""What the graph of a `torch.export` archive may say, so that loading it runs no code of its own.

torch evaluates size expressions as Python, and looks up operators and containers by name.  Each
of these is held against a list here.  Pure; loads no torch.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Final

EXPRESSION_CHARS_MAX: Final = 4096
EXPONENT_MAX: Final = 16
INTEGER_MAX: Final = 2**63 - 1

# Namespaces of operators that torch itself brings.
_OPERATOR: Final = re.compile(
    r"torch\.ops\.(?:aten|prims)\.([a-z_A-Z0-9]+)\.[a-zA-Z0-9_]+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|scan|associative_scan|map_impl|out_dtype|"
    r"strict_mode|hints_wrapper|invoke_subgraph|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\._?sym_[a-z_0-9]+"
    r"|math\.(?:trunc|ceil|floor|sqrt|pow|log|exp)"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|and_|or_|xor|invert|not_|"
    r"lshift|rshift|eq|ne|lt|le|gt|ge|getitem)"
)
# They reach for the file system or standard output.
_REFUSED: Final = frozenset({"from_file", "save", "load", "_print", "print", "warn"})

_FUNCTION_NAMES: Final = """
Symbol Integer Float Rational Add Mul Pow Max Min Abs Mod Piecewise ITE And Or Not Eq Ne Lt Le Gt Ge
Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan ceiling floor FloorDiv
ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural
FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt
RoundToInt RoundDecimal ToFloat Identity
"""
_FUNCTIONS: Final = frozenset(_FUNCTION_NAMES.split())
_FLAGS: Final = frozenset({"positive", "integer", "nonnegative", "nonzero", "real", "precision"})
_SYMBOL: Final = re.compile(r"[suz][a-z]*_?[0-9]{1,9}|u?int_oo|oo|true|false|True|False")
_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{0,40})?(?:e[+-]?[0-9]{1,3})?")
_CONTAINERS: Final = {"builtins.tuple": False, "builtins.list": False, "builtins.dict": True}


def check_graph(plain: Any) -> None:
    """Raise ValueError with the first thing that must not be in `models/model.json`."""
    if not isinstance(plain, dict):
        raise ValueError("the model is not an object")
    waiting: list[Any] = [plain]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, dict):
            _check_object(one)
            waiting.extend(one.values())


def _check_object(one: dict[str, Any]) -> None:
    if "expr_str" in one:
        check_expression(one["expr_str"])
    for key in ("target", "as_operator"):
        if isinstance(one.get(key), str):
            check_operator(one[key])
    for key in ("in_spec", "out_spec"):
        if isinstance(one.get(key), str):
            leaves(one[key])
    if one.get("custom_obj_values") or "as_custom_obj" in one or "custom_obj" in one:
        raise ValueError("the model holds an object that is no tensor; it cannot be published")


def check_operator(name: str) -> None:
    """Raise ValueError unless `name` is an operator that only computes."""
    found = _OPERATOR.fullmatch(name)
    if found is None or found[1] in _REFUSED:
        raise ValueError(
            f"operator {name!r:.200} cannot be published; allowed are torch's own that only "
            "compute: register no custom operators, or export to ONNX"
        )


def check_expression(text: Any) -> None:
    """Raise ValueError unless `text` is arithmetic of sizes: torch evaluates it as Python."""
    if not isinstance(text, str) or len(text) > EXPRESSION_CHARS_MAX:
        raise ValueError(f"the size {text!r:.200} is not an expression of reasonable length")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        fits = _is_arithmetic(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        fits = False
    if not fits:
        raise ValueError(f"the size {text!r:.200} is not arithmetic of sizes")


def leaves(text: str) -> list[tuple[str | int, ...]]:
    """Return where each value lies in the containers of a call or an answer, by keys and indices.

    Raises:
        ValueError: a container other than tuples, lists and dictionaries.

    >>> leaves('[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]')
    []
    """
    try:
        protocol, spec = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"the containers {text!r:.200} cannot be read") from None
    if protocol != 1:
        raise ValueError(f"the containers are written in the protocol {protocol!r:.40}, not 1")
    found: list[tuple[str | int, ...]] = []
    _collect(spec, (), found)
    return found


def _collect(spec: Any, path: tuple[str | int, ...], found: list[tuple[str | int, ...]]) -> None:
    if not isinstance(spec, dict) or not isinstance(spec.get("children_spec"), list):
        raise ValueError("the containers cannot be read")
    kind, children = spec.get("type"), spec["children_spec"]
    if kind is None and not children and spec.get("context") is None:
        found.append(path)
        return
    if not isinstance(kind, str) or kind not in _CONTAINERS:
        raise ValueError(
            f"the model takes or gives a {kind!r:.200}; wrap it so that it takes and gives tensors "
            "in tuples, lists and dictionaries"
        )
    keys: list[Any] = list(range(len(children)))
    if _CONTAINERS[kind]:
        try:
            keys = json.loads(spec["context"])
        except (ValueError, TypeError, KeyError, RecursionError):
            keys = []
        if len(keys) != len(children) or not all(isinstance(key, str) for key in keys):
            raise ValueError("the model takes or gives a dictionary whose keys are no texts")
    elif spec.get("context") not in ("null", None):
        raise ValueError("the containers cannot be read")
    for key, child in zip(keys, children, strict=True):
        _collect(child, (*path, key), found)


def _is_arithmetic(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int(value)):
            return abs(value) <= INTEGER_MAX
        case ast.Constant(value=float()):
            return True
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_arithmetic(operand)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult(), left=left, right=right):
            return _is_arithmetic(left) and _is_arithmetic(right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return (
                name in _FUNCTIONS
                and all(_is_flag(keyword) for keyword in keywords)
                and _are_arguments(name, args)
            )
    return False


def _are_arguments(name: str, args: list[ast.expr]) -> bool:
    if name in ("Symbol", "Float"):
        pattern = _SYMBOL if name == "Symbol" else _NUMBER
        match args:
            case [ast.Constant(value=str(text)), *rest]:
                return pattern.fullmatch(text) is not None and all(map(_is_arithmetic, rest))
        return False
    if name in ("Pow", "PowByNatural", "FloatPow", "LShift"):
        # Of a number to a number, torch would compute all the digits.
        match args:
            case [_, ast.Constant(value=int(power))] | [
                _,
                ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int(power))]),
            ]:
                if not 0 <= power <= EXPONENT_MAX:
                    return False
            case [_, ast.UnaryOp()] | [
                _,
                ast.Call(func=ast.Name(id="Integer"), args=[ast.UnaryOp()]),
            ]:
                pass  # a reciprocal
            case _:
                return False
    return all(map(_is_arithmetic, args))


def _is_flag(keyword: ast.keyword) -> bool:
    return keyword.arg in _FLAGS and isinstance(keyword.value, ast.Constant)

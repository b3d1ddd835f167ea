"""What the operators of a `torch.export` graph do besides computing: draw, and write in place.

A graph from `torch.export.export` is not functional: whoever changes a buffer or an input does so
by an operator whose name ends in an underscore, and nothing in the signature says so.  Pure; loads
no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

# torch tags them `nondeterministic_seeded`; a trailing underscore means in place.
_RANDOM_NAMES: Final = """
bernoulli binomial cauchy exponential geometric log_normal multinomial normal normal_functional
philox_rand poisson rand rand_like randint randint_like randn randn_like random randperm uniform
_sample_dirichlet _standard_gamma _fused_dropout
"""
_RANDOM: Final = frozenset(_RANDOM_NAMES.split())
# These draw only in training, by the argument of this name.
_RANDOM_IF: Final = {
    "dropout": "train",
    "alpha_dropout": "train",
    "feature_dropout": "train",
    "feature_alpha_dropout": "train",
    "native_dropout": "train",
    "rrelu": "training",
    "rrelu_with_noise": "training",
    "rrelu_with_noise_functional": "training",
    "lstm": "train",
    "gru": "train",
    "rnn_tanh": "train",
    "rnn_relu": "train",
}

# Their output is, or may be, the memory of their input.
_VIEW_NAMES: Final = """
alias view view_as _unsafe_view reshape reshape_as flatten unflatten slice select narrow transpose t
numpy_T mT permute movedim moveaxis swapaxes swapdims unsqueeze squeeze expand expand_as as_strided
diagonal unfold chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind detach
contiguous to real imag view_as_real view_as_complex positive getitem lift_fresh dropout
"""
_VIEWS: Final = frozenset(_VIEW_NAMES.split())
# In training these write to what they keep between calls, under a name without an underscore.
_NORMS: Final = {"batch_norm": "training", "native_batch_norm": "training"}
_NORM_STATE: Final = ("running_mean", "running_var")


def nodes_of(graph: Any) -> list[Any]:
    """Return the nodes of a graph and of those inside it, in order."""
    found = []
    for node in graph["nodes"]:
        found.append(node)
        for given in node["inputs"]:
            inner = given["arg"].get("as_graph")
            if inner:
                found.extend(nodes_of(inner["graph"]))
    return found


def is_random(node: Any) -> bool:
    """Tell whether an operator draws random numbers."""
    name, given = _name(node), _given(node)
    if name in _RANDOM_IF:
        # Anything but a constant false is decided while it runs.
        trains = given.get(_RANDOM_IF[name], {"as_bool": False}).get("as_bool") is not False
        share = given.get("dropout", given.get("p", {}))
        return trains and share.get("as_float") != 0.0
    if name == "scaled_dot_product_attention":
        return bool(given.get("dropout_p", {"as_float": 0.0}).get("as_float") != 0.0)
    return name in _RANDOM


def written(nodes: Sequence[Any], names: Collection[str]) -> bool:
    """Tell whether the memory of one of these values is written to, also through a view of it."""
    same = set(names)
    for node in nodes:
        name, given = _name(node), _given(node)
        tensors = [value for arg in given.values() for value in _tensors(arg)]
        if name in _NORMS and given.get(_NORMS[name], {}).get("as_bool") is not False:
            states = (given[key] for key in _NORM_STATE if key in given)
            if any(value in same for arg in states for value in _tensors(arg)):
                return True
        if not same.intersection(tensors):
            continue
        is_in_place = _overload(node) == "out" or _raw_name(node).endswith("_")
        target = given.get("out") or next(iter(given.values()))
        if is_in_place and same.intersection(_tensors(target)):
            return True
        if name in _VIEWS or is_in_place:
            same.update(value for output in node["outputs"] for value in _tensors(output))
    return False


def _raw_name(node: Any) -> str:
    parts: list[str] = node["target"].split(".")
    return parts[3] if parts[:2] == ["torch", "ops"] and len(parts) >= 4 else parts[-1]


def _name(node: Any) -> str:
    return _raw_name(node).removesuffix("_")


def _overload(node: Any) -> str:
    return str(node["target"]).rpartition(".")[2]


def _given(node: Any) -> dict[str, Any]:
    return {one["name"]: one["arg"] for one in node["inputs"]}


def _tensors(arg: Any) -> list[str]:
    if "as_tensor" in arg:
        return [arg["as_tensor"]["name"]]
    if "as_tensors" in arg:
        return [one["name"] for one in arg["as_tensors"]]
    if "as_optional_tensor" in arg:
        return _tensors(arg["as_optional_tensor"])
    return []

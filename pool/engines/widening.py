"""A graph in half precision → one in fp32 that rounds every value as the first does.

ONNX Runtime's CPU provider has no kernels for bf16 and few for fp16: it computes the others in fp32
and leaves out roundings between them, so an overflow would not be seen.  Kernels of a GPU add up in
fp32 as well but store what comes of it in half precision, which is what this graph does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

HALVES: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def widen(model: Any, elements: dict[str, int]) -> Any:
    """Return the wide graph; `model` is used up.

    Args:
        model: a ModelProto whose inputs, outputs and branches are not in half precision.
        elements: the element type of every tensor in it.
    """
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type in HALVES:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for node in graph.node:
        halves = [name for name in node.output if elements.get(name) in HALVES]
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}/exact"
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for name in halves:
            exact, stored = f"{name}/exact", f"{name}/stored"
            nodes.append(helper.make_node("Cast", [exact], [stored], to=elements[name]))
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    del graph.value_info[:]
    copies = helper.make_graph(nodes, "", [], [])
    del graph.node[:]
    graph.node.extend(copies.node)
    return model

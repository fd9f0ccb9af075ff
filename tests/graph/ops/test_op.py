"""What a rule sees of a node: names of arguments, types, tensors, and what it writes again."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdp_fx.graph.axes import Axis, Dim, constant
from mdp_fx.graph.ops.op import Emission, Op, tensor_types
from tests.graph.ops.small import op_of


def test_arguments_have_one_name_however_they_are_given() -> None:
    x = (constant(2), constant(4))
    for args, kwargs in [((1, 2), {}), ((1,), {"dim1": 2}), ((), {"dim0": 1, "dim1": 2})]:
        op = op_of(lambda g, p, a=args, k=kwargs: g.call_method("transpose", (p["x"], *a), k), "input dim0 dim1", x=x)
        assert (op.types("input"), op.value("dim0"), op.value("dim1")) == (x, 1, 2)
        assert op.value("dim2") is None
        assert op.value("dim2", 7) == 7
        assert op.where == "transpose (node transpose)"


def test_a_module_gives_its_attributes_and_tensors() -> None:
    op = op_of(lambda g, p: g.call_module("layer", (p["x"],)), "input weight bias", x=(constant(2), constant(4)))
    assert op.where == "layer"
    assert op.value("in_features") == 4
    assert [axis.size for axis in op.tensor("weight")] == [3, 4]
    assert op.tensor("weight") is op.tensor("weight")
    assert op.types("absent") is None


def test_positions_beyond_the_names_are_extra() -> None:
    op = op_of(lambda g, p: g.call_method("permute", (p["x"], 0, 2, 1)), "input dims", x=(constant(2),))
    assert (op.value("dims"), op.extra) == (0, (2, 1))


def test_types_of_lists_are_lists() -> None:
    x, y = (constant(2),), (constant(3),)
    op = op_of(lambda g, p: g.call_function(torch.cat, ([p["x"], p["y"]], 1)), "tensors dim", x=x, y=y)
    assert op.types("tensors") == [x, y]


def test_emitted_arguments_take_the_place_of_the_written_ones() -> None:
    axis = Axis((Dim(3),))

    def emission(op: Op) -> Emission:
        (found,) = op._state.emissions.values()
        return found

    op = op_of(lambda g, p: g.call_function(F.group_norm, (p["x"], 3, None)), "input num_groups weight", x=())
    op.emit("num_groups", axis)
    assert emission(op).node == ("call_function", F.group_norm, (op.node.args[0], axis, None), {})
    op = op_of(lambda g, p: g.call_function(F.group_norm, (p["x"],), {"num_groups": 3}), "input num_groups", x=())
    op.emit("num_groups", axis)
    assert emission(op).node == ("call_function", F.group_norm, (op.node.args[0],), {"num_groups": axis})
    op = op_of(lambda g, p: g.call_module("layer", (p["x"],)), "input weight bias", x=())
    op.emit("in_features", axis)
    assert emission(op) == Emission(None, {"in_features": axis})
    op = op_of(lambda g, p: g.call_method("view", (p["x"], 2)), "input", x=())
    op.emit_call(torch.reshape, op.node.args[0], [axis])
    assert emission(op).node == ("call_function", torch.reshape, (op.node.args[0], [axis]), {})
    op.emit_call("expand", op.node.args[0], 3, k=1)
    assert emission(op).node == ("call_method", "expand", (op.node.args[0], 3), {"k": 1})


def test_freezing_names_the_node() -> None:
    dim = Dim(4)
    op = op_of(lambda g, p: g.call_module("layer", (p["x"],)), "input", x=(Axis((dim,)),))
    op.freeze(op.tensor("input"), "why")
    assert dim.reason == "why at layer"


def test_nested_types_are_listed() -> None:
    x, y = (constant(2),), (constant(3), constant(4))
    assert tensor_types({"a": x, "b": [y, None, (x, y)]}) == [x, y, x, y]
    assert tensor_types(None) == []
    assert tensor_types(()) == [()]

"""Multi-head attention layers, written as separate projections around the attention of every head."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mdp_fx.graph.readers import readers_of
from mdp_fx.graph.tracer import DTYPE, SHAPE, called_module
from mdp_fx.passes.normalize.edit import (
    Editor,
    container,
    discard,
    is_plain,
    is_tensor,
    linear,
    op_name,
    replace,
    taken,
)

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class _Call:
    """One call of an attention layer.

    Attributes:
        node: the call.
        operands: query, key and value.
        attn_mask: (L, S) or (B * H, L, S), True where attention is blocked, or added to the scores.
        key_padding_mask: (B, S), likewise; operands, masks and result may all be without the batch axis.
        makes_weights: whether the layer makes the attention weights: then a query whose keys are all blocked gets no
            number (NaN), where fused attention gives zero.
        weights: readers of the attention weights.
        average: whether the weights are the mean over heads.
    """

    node: fx.Node
    operands: tuple[fx.Node, fx.Node, fx.Node]
    attn_mask: fx.Node | None
    key_padding_mask: fx.Node | None
    makes_weights: bool
    weights: tuple[fx.Node, ...]
    average: bool


@dataclass(frozen=True)
class _Layer:
    """What a call does its attention with.

    Attributes:
        heads: their number.
        head_size: entries of a query in each.
        batch_first: whether examples come before tokens.
        path: of the module that holds the layers of this one; None for the function.
        projections: weight and bias of the function's, by name.
        rows: what is put behind the keys ("k_proj") and the values ("v_proj"), if anything.
        drops: whether some attention weights are dropped in training.
    """

    heads: int
    head_size: int
    batch_first: bool
    path: str | None
    projections: Mapping[str, tuple[fx.Node, fx.Node | None]]
    rows: Mapping[str, str | fx.Node]
    drops: bool


def split_attention(module: fx.GraphModule) -> bool:
    """Replaces every nn.MultiheadAttention by a module that only holds its projections; takes the function apart, too.

    A layer that does more (zero attention, hooks, parametrisations, weights that others read) stays, and so does one
    with a call that is not known here.

    Returns:
        Whether anything changed.
    """
    calls = _calls_of_layers(module)
    parts: dict[tuple[int, int], nn.Parameter] = {}
    for nodes in calls.values():
        path = str(nodes[0].target)
        whole: Any = module.get_submodule(path)
        rows = {name: f"{path}.{row}" for name, row in _ROWS.items() if getattr(whole, row) is not None}
        layer = _Layer(whole.num_heads, whole.head_dim, whole.batch_first, path, {}, rows, whole.dropout > 0)
        module.add_submodule(path, _projections(whole, parts))
        _write_all(module, nodes, _LAYER, lambda _node, layer=layer: layer)  # type: ignore[misc]
    functions = module.graph.find_nodes(op="call_function", target=F.multi_head_attention_forward)
    plain = [node for node in functions if _understand(node, _FUNCTION) is not None and _is_plain_call(node)]
    _write_all(module, plain, _FUNCTION, lambda node: _function_layer(module, node))
    return bool(calls or plain)


_LAYER = inspect.signature(nn.MultiheadAttention(2, 1).forward)
_FUNCTION = inspect.signature(F.multi_head_attention_forward)
_ROWS = {"k_proj": "bias_k", "v_proj": "bias_v"}


def _write_all(
    module: fx.GraphModule,
    nodes: Iterable[fx.Node],
    signature: inspect.Signature,
    layer_of: Callable[[fx.Node], _Layer],
) -> None:
    for node in nodes:
        # Understood only now: its operands may be results of a call before it.
        call = _understand(node, signature)
        assert call is not None
        _Writer(module, layer_of(node), call).write()


def _calls_of_layers(module: fx.GraphModule) -> dict[int, list[fx.Node]]:
    """The calls of every layer that can be taken apart, by the layer's identity.

    Layers may share parameters with each other, and with nobody else.
    """
    calls: dict[int, list[fx.Node]] = {}
    for node in module.graph.find_nodes(op="call_module"):
        layer = called_module(module, node)
        if isinstance(layer, nn.MultiheadAttention) and _is_supported(layer):
            calls.setdefault(id(layer), []).append(node)
    calls = {key: nodes for key, nodes in calls.items() if all(_understand(node, _LAYER) for node in nodes)}
    read_by = readers_of(module)
    count = -1
    while len(calls) != count:
        count = len(calls)
        known = {node for nodes in calls.values() for node in nodes}
        calls = {
            key: nodes
            for key, nodes in calls.items()
            if all(known.issuperset(read_by[id(p)]) for p in called_module(module, nodes[0]).parameters())
        }
    return calls


def _is_supported(layer: nn.MultiheadAttention) -> bool:
    plain = is_plain(layer, nn.MultiheadAttention) and is_plain(layer.out_proj, NonDynamicallyQuantizableLinear)
    return plain and not layer.add_zero_attn


def _arguments(node: fx.Node, signature: inspect.Signature) -> dict[str, Any]:
    bound = signature.bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _is_plain_call(node: fx.Node) -> bool:
    """Whether a call of the function does no more than a layer without dropout does."""
    given = _arguments(node, _FUNCTION)
    more = given["add_zero_attn"] or given["static_k"] is not None or given["static_v"] is not None
    return not more and (given["dropout_p"] == 0 or given["training"] is False)


def _function_layer(module: fx.GraphModule, node: fx.Node) -> _Layer:
    """The projections of a call of the function: three parts of one weight, or three weights."""
    edit, given = Editor(module, node), _arguments(node, _FUNCTION)
    size = int(given["embed_dim_to_check"])
    projections: dict[str, tuple[fx.Node, fx.Node | None]] = {}
    for i, name in enumerate(_PROJECTIONS):
        part = slice(i * size, (i + 1) * size)
        weight, bias = given[f"{name}_weight"], given["in_proj_bias"]
        if not given["use_separate_proj_weight"]:
            weight = edit.call(operator.getitem, given["in_proj_weight"], part)
        projections[name] = weight, None if bias is None else edit.call(operator.getitem, bias, part)
    projections["out_proj"] = given["out_proj_weight"], given["out_proj_bias"]
    rows = {name: given[row] for name, row in _ROWS.items() if given[row] is not None}
    return _Layer(given["num_heads"], size // given["num_heads"], False, None, projections, rows, drops=False)


def _understand(node: fx.Node, signature: inspect.Signature) -> _Call | None:
    """Reads a call; None where it is another one than those known here."""
    given = _arguments(node, signature)
    operands = (given["query"], given["key"], given["value"])
    masks = [given[name] for name in ("attn_mask", "key_padding_mask")]
    ranks = {len(operand.meta[SHAPE]) for operand in operands if is_tensor(operand)}
    if not all(map(is_tensor, operands)) or ranks not in ({2}, {3}):
        return None
    kind = operands[0].meta[DTYPE]
    if any(mask is not None and not (is_tensor(mask) and mask.meta[DTYPE] in (torch.bool, kind)) for mask in masks):
        return None
    items = [(user, user.args[1]) for user in node.users if op_name(user) == "getitem"]
    flags = [given[name] for name in ("need_weights", "average_attn_weights", "is_causal")]
    if any(index not in (0, 1, -1, -2) for _, index in items) or len(items) < len(node.users):
        return None
    if not all(isinstance(flag, int) for flag in flags):
        return None
    if flags[2] and masks[0] is None:
        return None
    weights = tuple(user for user, index in items if index in (1, -1) and user.users)
    if weights and not flags[0]:
        return None
    return _Call(node, operands, masks[0], masks[1], bool(flags[0]), weights, bool(flags[1]))


def _projections(layer: nn.MultiheadAttention, parts: dict[tuple[int, int], nn.Parameter]) -> nn.Module:
    """The layer's parameters as four linear layers, its dropout and its further rows where it has them.

    Args:
        layer: what is taken apart.
        parts: of fused tensors, by the tensor's identity and their number; more are added.
    """

    def part(tensor: torch.Tensor, i: int) -> nn.Parameter:
        size = layer.embed_dim
        if (id(tensor), i) not in parts:
            parts[id(tensor), i] = taken(tensor, torch.arange(i * size, (i + 1) * size))
        return parts[id(tensor), i]

    children: dict[str, nn.Module] = {}
    for i, name in enumerate(_PROJECTIONS):
        weight = getattr(layer, f"{name}_weight") if layer.in_proj_weight is None else part(layer.in_proj_weight, i)
        children[name] = linear(weight, None if layer.in_proj_bias is None else part(layer.in_proj_bias, i))
    children["out_proj"] = linear(layer.out_proj.weight, layer.out_proj.bias)
    if layer.dropout > 0:
        children["attn_drop"] = nn.Dropout(layer.dropout).eval()
    holder = container(**children)
    for row in _ROWS.values():
        if getattr(layer, row) is not None:
            holder.register_parameter(row, getattr(layer, row))
    return holder


class _Writer:
    """Writes one call in nodes: B examples, or one without that axis, L queries, S keys, H heads of D entries."""

    def __init__(self, module: fx.GraphModule, layer: _Layer, call: _Call) -> None:
        self._edit = Editor(module, call.node)
        self._call = call
        self._layer = layer
        # From the layer's axes to (B, H, L, D), and back to them without the heads.
        self._batched = len(call.operands[0].meta[SHAPE]) == 3
        self._in: tuple[int, ...] = (1, 0, 2)
        self._out: tuple[int, ...] = (1, 0, 2)
        if self._batched:
            self._in, self._out = ((0, 2, 1, 3),) * 2 if layer.batch_first else ((1, 2, 0, 3), (2, 0, 1, 3))
        self._scale = layer.head_size**-0.5

    def write(self) -> None:
        edit, call = self._edit, self._call
        q, k, v = (self._heads_of(name, x) for name, x in zip(_PROJECTIONS, call.operands, strict=True))
        mask = self._mask(q, k)
        weights = None
        if self._layer.drops or call.weights or (call.makes_weights and mask is not None):
            weights = self._weights(q, k, mask)
            attended = edit.call(torch.matmul, weights, v)
        else:
            if mask is not None and mask.meta[DTYPE] is torch.bool:
                mask = edit.call(torch.logical_not, mask)
            attended = edit.call(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, scale=self._scale)
        moved = edit.call("permute", attended, self._out)
        *outer, heads, size = moved.meta[SHAPE]
        result = self._projected("out_proj", edit.call("reshape", moved, (*outer, heads * size)))
        if call.weights and weights is not None and call.average:
            weights = edit.call(torch.mean, weights, -3)
        for user in list(call.node.users):
            if user in call.weights and weights is not None:
                replace(user, weights)
            elif user.args[1] in (0, -2):
                replace(user, result)
            else:
                discard(user)

    def _heads_of(self, name: str, x: fx.Node) -> fx.Node:
        y = self._projected(name, x)
        if name in self._layer.rows:
            y = self._with_row(y, self._layer.rows[name])
        *outer, size = y.meta[SHAPE]
        heads = self._layer.heads
        split = self._edit.call("reshape", y, (*outer, heads, size // heads))
        return self._edit.call("permute", split, self._in)

    def _projected(self, name: str, x: fx.Node) -> fx.Node:
        if self._layer.path is not None:
            return self._edit.layer(f"{self._layer.path}.{name}", x)
        weight, bias = self._layer.projections[name]
        return self._edit.call(F.linear, x, weight, bias)

    def _with_row(self, y: fx.Node, stored: str | fx.Node) -> fx.Node:
        """Keys or values, and behind them one more (1, 1, E) for every example."""
        edit, shape = self._edit, y.meta[SHAPE]
        row = edit.stored(stored) if isinstance(stored, str) else stored
        if not self._batched:
            return edit.call(torch.cat, [y, edit.call("reshape", row, (1, shape[-1]))], 0)
        place = 1 if self._layer.batch_first else 0
        row = edit.call("expand", row, *(1 if i == place else size for i, size in enumerate(shape)))
        return edit.call(torch.cat, [y, row], place)

    def _weights(self, q: fx.Node, k: fx.Node, mask: fx.Node | None) -> fx.Node:
        edit = self._edit
        scores = edit.call(torch.matmul, edit.call(torch.mul, q, self._scale), edit.call("transpose", k, -2, -1))
        if mask is not None and mask.meta[DTYPE] is torch.bool:
            scores = edit.call("masked_fill", scores, mask, float("-inf"))
        elif mask is not None:
            scores = edit.call(torch.add, scores, mask)
        weights = edit.call(torch.softmax, scores, -1)
        return edit.layer(f"{self._layer.path}.attn_drop", weights) if self._layer.drops else weights

    def _mask(self, q: fx.Node, k: fx.Node) -> fx.Node | None:
        """Both masks as one that broadcasts to (B, H, L, S): True where attention is blocked, or what is added."""
        edit = self._edit
        attn, padding = self._call.attn_mask, self._call.key_padding_mask
        *batch, heads, queries, _ = q.meta[SHAPE]
        keys = k.meta[SHAPE][-2]
        if self._layer.rows:
            # What is put behind the keys is never blocked.
            attn, padding = (None if mask is None else edit.call(F.pad, mask, (0, 1)) for mask in (attn, padding))
        if attn is not None and len(attn.meta[SHAPE]) == 3:
            attn = edit.call("reshape", attn, (*batch, heads, queries, keys))
        if padding is not None:
            padding = edit.call("reshape", padding, (*batch, 1, 1, keys))
        if attn is None or padding is None:
            return attn if padding is None else padding
        blocking = [mask for mask in (attn, padding) if mask.meta[DTYPE] is torch.bool]
        adding = [mask for mask in (attn, padding) if mask.meta[DTYPE] is not torch.bool]
        if len(adding) == 1:
            return edit.call("masked_fill", adding[0], blocking[0], float("-inf"))
        return edit.call(torch.add if adding else torch.logical_or, attn, padding)

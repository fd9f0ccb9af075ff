"""Multi-head attention layers, written as separate projections around the attention of every head."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.tracer import DTYPE, SHAPE, called_module
from mdp_fx.passes.normalize.edit import (
    Editor,
    container,
    discard,
    is_plain,
    is_tensor,
    linear,
    op_name,
    readers,
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
        key_padding_mask: (B, S), likewise.
        weights: readers of the attention weights.
        average: whether the weights are the mean over heads.
    """

    node: fx.Node
    operands: tuple[fx.Node, fx.Node, fx.Node]
    attn_mask: fx.Node | None
    key_padding_mask: fx.Node | None
    weights: tuple[fx.Node, ...]
    average: bool


def split_attention(module: fx.GraphModule) -> bool:
    """Replaces every nn.MultiheadAttention by a module that only holds its four projections.

    A layer that does more (bias_kv, zero attention, hooks, shared weights) stays, and so does one with a call that is
    not known here.

    Returns:
        Whether anything changed.
    """
    calls: dict[int, list[fx.Node]] = {}
    for node in module.graph.find_nodes(op="call_module"):
        calls.setdefault(id(called_module(module, node)), []).append(node)
    read_by = readers(module)
    changed = False
    for nodes in calls.values():
        path = str(nodes[0].target)
        layer = module.get_submodule(path)
        if not isinstance(layer, nn.MultiheadAttention) or not _is_supported(layer):
            continue
        understood = [call for node in nodes if (call := _understand(node)) is not None]
        own = all(read_by[id(tensor)] == nodes for tensor in layer.parameters())
        if len(understood) < len(nodes) or not own:
            continue
        module.add_submodule(path, _projections(layer))
        for call in understood:
            _Writer(module, path, layer, call).write()
        changed = True
    return changed


def _is_supported(layer: nn.MultiheadAttention) -> bool:
    plain = is_plain(layer, nn.MultiheadAttention) and is_plain(layer.out_proj, type(layer.out_proj))
    return plain and layer.bias_k is None and not layer.add_zero_attn


def _understand(node: fx.Node) -> _Call | None:
    """Reads a call; None where it is another one than those known here."""
    bound = inspect.signature(nn.MultiheadAttention.forward).bind(None, *node.args, **node.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    operands = (given["query"], given["key"], given["value"])
    masks = [given[name] for name in ("attn_mask", "key_padding_mask")]
    if not all(is_tensor(operand) and len(operand.meta[SHAPE]) == 3 for operand in operands):
        return None
    kind = operands[0].meta[DTYPE]
    if any(mask is not None and not (is_tensor(mask) and mask.meta[DTYPE] in (torch.bool, kind)) for mask in masks):
        return None
    items = [(user, user.args[1]) for user in node.users if op_name(user) == "getitem"]
    flags = [given[name] for name in ("need_weights", "average_attn_weights", "is_causal")]
    if len(items) < len(node.users) or not all(isinstance(flag, int) for flag in flags) or flags[2]:
        return None
    weights = tuple(user for user, index in items if index in (1, -1) and user.users)
    if weights and not flags[0]:
        return None
    return _Call(node, operands, masks[0], masks[1], weights, bool(flags[1]))


def _projections(layer: nn.MultiheadAttention) -> nn.Module:
    """The layer's parameters as four linear layers, and its dropout where it has one."""
    size = layer.embed_dim
    if layer.in_proj_weight is not None:
        weights = [taken(layer.in_proj_weight, torch.arange(i * size, (i + 1) * size)) for i in range(3)]
    else:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    parts: dict[str, nn.Module] = {}
    for i, name in enumerate(_PROJECTIONS):
        bias = None if layer.in_proj_bias is None else taken(layer.in_proj_bias, torch.arange(i * size, (i + 1) * size))
        parts[name] = linear(weights[i], bias)
    parts["out_proj"] = linear(layer.out_proj.weight, layer.out_proj.bias)
    if layer.dropout > 0:
        parts["attn_drop"] = nn.Dropout(layer.dropout).eval()
    return container(**parts)


class _Writer:
    """Writes one call in nodes: B examples, L queries, S keys, H heads of D entries."""

    def __init__(self, module: fx.GraphModule, path: str, layer: nn.MultiheadAttention, call: _Call) -> None:
        self._edit = Editor(module, call.node)
        self._path = path
        self._call = call
        self._heads = layer.num_heads
        self._drops = layer.dropout > 0
        # From the layer's axes to (B, H, L, D), and back to them without the heads.
        self._in, self._out = ((0, 2, 1, 3), (0, 2, 1, 3)) if layer.batch_first else ((1, 2, 0, 3), (2, 0, 1, 3))
        self._scale = layer.head_dim**-0.5

    def write(self) -> None:
        edit, call = self._edit, self._call
        q, k, v = (self._heads_of(name, x) for name, x in zip(_PROJECTIONS, call.operands, strict=True))
        mask = self._mask(q, k)
        weights = None
        if self._drops or call.weights:
            weights = self._weights(q, k, mask)
            attended = edit.call(torch.matmul, weights, v)
        else:
            if mask is not None and mask.meta[DTYPE] is torch.bool:
                mask = edit.call(torch.logical_not, mask)
            attended = edit.call(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, scale=self._scale)
        moved = edit.call("permute", attended, self._out)
        merged = edit.call("reshape", moved, (*moved.meta[SHAPE][:2], self._heads * moved.meta[SHAPE][3]))
        result = edit.layer(f"{self._path}.out_proj", merged)
        if call.weights and weights is not None and call.average:
            weights = edit.call(torch.mean, weights, 1)
        for user in list(call.node.users):
            if user in call.weights and weights is not None:
                replace(user, weights)
            elif user.args[1] in (0, -2):
                replace(user, result)
            else:
                discard(user)

    def _heads_of(self, name: str, x: fx.Node) -> fx.Node:
        y = self._edit.layer(f"{self._path}.{name}", x)
        *outer, size = y.meta[SHAPE]
        split = self._edit.call("reshape", y, (*outer, self._heads, size // self._heads))
        return self._edit.call("permute", split, self._in)

    def _weights(self, q: fx.Node, k: fx.Node, mask: fx.Node | None) -> fx.Node:
        edit = self._edit
        scores = edit.call(torch.matmul, edit.call(torch.mul, q, self._scale), edit.call("transpose", k, -2, -1))
        if mask is not None and mask.meta[DTYPE] is torch.bool:
            scores = edit.call("masked_fill", scores, mask, float("-inf"))
        elif mask is not None:
            scores = edit.call(torch.add, scores, mask)
        weights = edit.call(torch.softmax, scores, -1)
        return edit.layer(f"{self._path}.attn_drop", weights) if self._drops else weights

    def _mask(self, q: fx.Node, k: fx.Node) -> fx.Node | None:
        """Both masks as one that broadcasts to (B, H, L, S): True where attention is blocked, or what is added."""
        edit = self._edit
        attn, padding = self._call.attn_mask, self._call.key_padding_mask
        batch, queries, keys = q.meta[SHAPE][0], q.meta[SHAPE][2], k.meta[SHAPE][2]
        if attn is not None and len(attn.meta[SHAPE]) == 3:
            attn = edit.call("reshape", attn, (batch, self._heads, queries, keys))
        if padding is not None:
            padding = edit.call("reshape", padding, (batch, 1, 1, keys))
        if attn is None or padding is None:
            return attn if padding is None else padding
        blocking = [mask for mask in (attn, padding) if mask.meta[DTYPE] is torch.bool]
        adding = [mask for mask in (attn, padding) if mask.meta[DTYPE] is not torch.bool]
        if len(adding) == 1:
            return edit.call("masked_fill", adding[0], blocking[0], float("-inf"))
        return edit.call(torch.add if adding else torch.logical_or, attn, padding)

"""Steps of random networks that are spelled or built as few networks are: each was, or might be, done wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.graph.random_networks import Builder


def by_name(builder: Builder) -> int:
    """A function whose arguments are all given by name, in any order."""
    source = builder.source()
    size = builder.maps[source]
    conv = builder.layer(nn.Conv2d(size.channels, size.channels, 1))
    groups, order = builder.divisor(size.channels), builder.rng.permutation(4)

    def call(function: Callable[..., Any], **named: Any) -> Any:
        names = list(named)
        return function(**{names[i]: named[names[i]] for i in order if i < len(names)})

    calls: tuple[Callable[[Any, Tensor], Any], ...] = (
        lambda conv, x: call(F.conv2d, input=x, weight=conv.weight, bias=conv.bias),
        lambda conv, x: x + call(F.prelu, input=torch.sigmoid(x), weight=conv.bias).sum(1, keepdim=True),
        lambda conv, x: x * call(torch.sub, input=x, other=conv(x)).sum(1, keepdim=True).tanh(),
        lambda conv, x: call(torch.cat, tensors=[x, conv(x)], dim=1)[:, : size.channels],
        lambda conv, x: call(F.group_norm, input=x, num_groups=groups, weight=conv.bias, bias=conv.bias),
        lambda conv, x: call(torch.mul, input=x, other=torch.sigmoid(conv(x))),
        lambda conv, x: x * call(torch.mean, input=torch.sigmoid(x), dim=1, keepdim=True),
    )
    chosen = calls[builder.below(len(calls))]
    return builder.add("by_name", lambda layers, values: (chosen(layers[conv], values[source]),), [source], size)


def same_norm(builder: Builder) -> int:
    """One norm that stores nothing, called on two values."""
    source = builder.source()
    size = builder.maps[source]
    other = builder.layer(nn.Conv2d(size.channels, size.channels, 1))
    norms: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.GroupNorm(builder.divisor(size.channels), size.channels, affine=False),
        lambda: nn.LayerNorm(size.channels, elementwise_affine=False),
        lambda: nn.RMSNorm(size.channels, elementwise_affine=False),
    )
    chosen = builder.below(len(norms))
    norm = builder.layer(norms[chosen]())

    def normalised(layers: Any, x: Tensor) -> Tensor:
        y: Tensor = layers[norm](x) if chosen == 0 else layers[norm](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y

    def step(layers: Any, values: list[Tensor]) -> Sequence[Tensor]:
        x = values[source]
        return normalised(layers, x), normalised(layers, layers[other](x))

    return builder.add("same_norm", step, [source], size, size)


def copies_summed(builder: Builder) -> int:
    """Copies of what is zero for some units only, tied to these units along the new axis."""
    source = builder.conv()
    size, width = builder.maps[source], 3
    count = size.channels
    stretch, first, second = (builder.parameter(*shape) for shape in ((width,), (count,), (count,)))
    spellings: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda y: y.repeat(1, count, 1, 1),
        lambda y: y.repeat_interleave(count, 1),
        lambda y: y.expand(-1, count, -1, -1),
        lambda y: torch.tile(y, (1, count, 1, 1)),
    )
    copy = spellings[builder.below(len(spellings))]

    def step(layers: Any, values: list[Tensor]) -> Sequence[Tensor]:
        x = values[source]
        y = x.mean((2, 3)).unsqueeze(-1) * torch.sigmoid(layers[stretch].value)
        y = copy(y.unsqueeze(1))
        summed = torch.einsum("bcdl,c,d->bl", y + y.transpose(1, 2), layers[first].value, layers[second].value)
        return (x * torch.tanh(summed).sum(1).view(-1, 1, 1, 1) + y.sum(1).mean(-1)[..., None, None],)

    return builder.add("copies_summed", step, [source], size)


def turned(builder: Builder) -> int:
    """An operation without a rule that gives an axis of two in front, as many as there are examples."""
    source = builder.source()
    size = builder.maps[source]
    if size.channels < 2:
        return builder.conv(source)

    def function(x: Tensor) -> Tensor:
        return x * torch.sigmoid(torch.rot90(x[:, :2], 1, (0, 1))[0].mean((1, 2)).view(-1, 1, 1, 1))

    return builder.unary("turned", function, source, replace(size))


RARE: tuple[tuple[Callable[[Builder], int | None], int], ...] = (
    (by_name, 2),
    (same_norm, 2),
    (copies_summed, 1),
    (turned, 1),
)

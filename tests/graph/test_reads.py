"""What a forward may learn of a tensor: facts of its shape, but no entries, and no sizes that entries decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.graph.trace import trace
from mdp_fx.pipeline import analyse
from tests.graph.small import net, vectors

Number = Callable[[Tensor], Any]

ENTRIES: dict[str, Number] = {
    "asarray": lambda x: float(np.asarray(x.detach()).mean()),
    "np.array": lambda x: torch.from_numpy(np.array(x[0])).mean(),
    "__array__": lambda x: float(x.__array__().sum()),
    "contains": lambda x: 2 if 0.0 in x else 1,
    "equal": lambda x: 2 if torch.equal(input=x, other=x.abs()) else 1,
    "as_tensor": lambda x: torch.as_tensor(x.mean()),
    "dlpack": lambda x: torch.from_dlpack(x).mean(),
    "address": lambda x: x.data_ptr() % 2,
    "format": lambda x: float(f"{x.mean():.3f}"),
    "is_nonzero": lambda x: 2 if x.mean().is_nonzero() else 1,
}
"""By what entries of a tensor become a plain value."""

SIZES: dict[str, Number] = {
    "mask": lambda x: x[x > 0].shape[0],
    "masked_select": lambda x: torch.masked_select(x, mask=x > 0).shape[0],
    "nonzero": lambda x: torch.nonzero(x > 0.5).size(0),
    "unique": lambda x: torch.unique(x).numel(),
    "len": lambda x: len(x[x > 0]),
    "nonzero of each axis": lambda x: x.nonzero(as_tuple=True)[0].numel(),
    "where": lambda x: torch.where(x > 0)[0].numel(),
    "derived": lambda x: (x[x > 0] * 2).relu().shape[0],
    "stride": lambda x: torch.stack([x[x > 0], x[x > 0]]).stride(0),
    "bytes": lambda x: x[x > 0].nbytes,
    "parts": lambda x: torch.stack(x[x > 0].unbind(0)).mean(),
    "loop": lambda x: sum(x[x > 0]),
    "unpacked": lambda x: sum(x[x > 0].split(1)),
    "arange": lambda x: len(torch.arange(x.argmax() + 1)),
    "slice": lambda x: len(x.flatten()[: x.argmax()]),
    "one_hot": lambda x: F.one_hot(x.abs().long()).shape[-1],
    "inference mode": torch.inference_mode()(lambda x: len(torch.where(x > 0)[0])),
}
"""By what entries become a size."""

FINE: dict[str, Number] = {
    "facts": lambda x: (x.dim() + x.numel() + len(x) + x.stride(0)) if x.is_floating_point() else 1,
    "mean": lambda x: x[x > 0].mean(),
    "mask of its own": lambda x: x[:, torch.tensor([True, False, True])].shape[1],
    "integer index": lambda x: x[:, torch.tensor([2, 0])].shape[1],
    "index by entries": lambda x: x[torch.arange(2), x.argmax(-1)].shape[0],
    "scalar of a mask": lambda x: x[x > 0].sum().ndim + 1,
    "axes of where": lambda x: x[torch.where(x > 0)].mean() * len(torch.where(x > 0)),
    "inference mode": torch.inference_mode()(lambda x: x.size(-1) * torch.ones(3).sum()),
}


def scaled(number: Number) -> nn.Module:
    return net(lambda net, x: net.a(x) * number(x), a=nn.Linear(3, 8))


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("number", ENTRIES.values(), ids=ENTRIES)
def test_entries_that_become_plain_values_are_refused(number: Number) -> None:
    with pytest.raises(
        ModelError, match=r"decides on the entries of a tensor, not on shapes \(test_reads.py, line \d+"
    ):
        trace(scaled(number), (vectors(),))


@pytest.mark.parametrize("number", SIZES.values(), ids=SIZES)
def test_sizes_that_depend_on_entries_are_refused(number: Number) -> None:
    where = r"by a size that depends on them \(test_reads.py, line \d+"
    with pytest.raises(ModelError, match=rf"decides on the entries of a tensor, {where}"):
        trace(scaled(number), (vectors(),))


@pytest.mark.parametrize("number", FINE.values(), ids=FINE)
def test_facts_of_shapes_may_be_read(number: Number) -> None:
    model = scaled(number)
    result = trace(model, (vectors(),))
    with torch.no_grad():
        assert torch.equal(result.module(vectors() * 2), model(vectors() * 2))


def test_entries_and_sizes_that_no_input_changes_may_be_read() -> None:
    def body(net: Any, x: Tensor) -> Any:
        chosen = net.mask.nonzero()
        return net.a(x)[:, : len(chosen)] * chosen.shape[0] * np.asarray(net.mask).sum().item()

    model = net(body, a=nn.Linear(3, 8))
    model.register_buffer("mask", torch.arange(8) < 5)
    result = trace(model, (vectors(),))
    with torch.no_grad():
        assert torch.equal(result.module(vectors() * 2), model(vectors() * 2))


@pytest.mark.filterwarnings("ignore:`create_unbacked_symint`")
def test_an_operator_of_a_library_tells_its_shape() -> None:
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
    kept = scaled(lambda x: len(ops.nms(boxes * x[0, 0].abs(), x[0], 0.5)))
    with pytest.raises(ModelError, match="by a size that depends on them"):
        trace(kept, (vectors(),))
    pooled = scaled(lambda x: len(ops.roi_align(x.expand(1, 1, 2, 3), [boxes * x[0, 0].abs()], 2)))
    assert trace(pooled, (vectors(),))


def test_tensors_of_another_layout_are_refused() -> None:
    with pytest.raises(ModelError, match=r"makes a tensor of torch.sparse_coo layout, .* \(test_reads.py, line \d+"):
        trace(scaled(lambda x: x.to_sparse().indices().shape[1]), (vectors(),))


def test_a_detector_is_refused_at_its_line_and_its_backbone_works() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    with pytest.raises(ModelError, match=r"by a size that depends on them \(\S+.py, line \d+: .*\)$") as caught:
        analyse(model, torch.rand(1, 3, 64, 64), front_end="symbolic")
    assert "\n" not in str(caught.value)
    assert analyse(model.backbone, torch.rand(1, 3, 64, 64)).groups

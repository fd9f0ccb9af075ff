"""Regions as ONNX models of any size, between neighbours, and held against torch."""

from __future__ import annotations

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
from torch import Tensor

from mdp_fx.latency.region_onnx import RegionModels, RegionTemplate, agree, direct, in_context
from tests.latency.regions import Region, constant_region, conv_region, depthwise_region, token_region


def _outputs(model: bytes, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)}))


@pytest.mark.parametrize(
    ("region", "sizes", "learns"),
    [
        (conv_region(), (16, 40), False),
        (conv_region(), (7, 9), False),
        (conv_region(add=True), (24, 8), False),
        (depthwise_region(), (24,), True),
        (token_region(), (12,), True),
    ],
)
def test_resized_equals_exported(region: Region, sizes: tuple[int, ...], learns: bool) -> None:
    template = RegionTemplate(region)
    assert not learns or template.learn()
    module, inputs = region.build(sizes)
    resized = template.resize(module, inputs, sizes)
    exported = direct(module, inputs)
    assert [node.op_type for node in resized.graph.node] == [node.op_type for node in exported.graph.node]
    with torch.inference_mode():
        expected = module(*inputs).numpy()
    for model in (resized, exported):
        (result,) = _outputs(model.SerializeToString(), inputs)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_nothing_to_learn_for_a_region_without_sizes_in_its_graph() -> None:
    template = RegionTemplate(conv_region())
    assert not template.learn()
    assert not RegionTemplate(constant_region()).learn()


def test_the_neighbours_are_not_charged_to_the_region() -> None:
    module, inputs = conv_region(side=28, dense=(64, 64)).build((64, 64))
    with torch.inference_mode():
        outputs = (module(*inputs),)
    context = in_context(direct(module, inputs), inputs, outputs)
    assert [node.op_type for node in context.model.graph.node] == ["Conv", "Mul", "Conv", "Relu", "Conv"]
    with torch.inference_mode():
        expected = module(*context.inputs).mean(1, keepdim=True).numpy()
    session = onnxruntime.InferenceSession(context.model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, context.feeds)[0], expected, rtol=1e-3, atol=1e-4)


def test_images_are_given_as_they_are() -> None:
    module, inputs = conv_region(dense=(3, 16)).build((3, 16))
    with torch.inference_mode():
        context = in_context(direct(module, inputs), inputs, (module(*inputs),))
    assert context.inputs[0] is inputs[0]


def test_the_last_model_of_a_region_is_an_export_of_its_own() -> None:
    region = depthwise_region()
    models = RegionModels()
    module, inputs = region.build((24,))
    found = [model.SerializeToString() for model in models.of(region, (24,), module, inputs)]
    assert len(found) == 3
    assert found[-1] == direct(module, inputs).SerializeToString()
    assert len(list(models.of(region, (24,), module, inputs))) == 1


def test_agreement_is_measured_by_the_largest_value() -> None:
    one = [torch.tensor([100.0, 0.0])]
    assert agree([torch.tensor([101.0, 1.0])], one, 0.05)
    assert not agree([torch.tensor([100.0, 9.0])], one, 0.05)
    assert not agree([torch.tensor([torch.nan, 0.0])], one, 0.05)
    assert not agree([torch.tensor([101.0, 1.0])], one)
    assert agree([torch.tensor([101.0, 1.0]).half()], [one[0].half()])


def test_other_numbers_of_outputs_or_shapes_do_not_agree() -> None:
    one = [torch.ones(2, 3)]
    assert not agree([], one)
    assert not agree([torch.ones(3, 2)], one)
    assert agree([torch.ones(0, 3)], [torch.ones(0, 3)])


def test_an_average_is_held_against_its_terms() -> None:
    terms = torch.tensor([[1000.0], [-1000.0]]).reshape(1, 2, 1, 1)
    averages = [torch.full((1, 1, 1, 1), 0.5)]
    assert agree(averages, [terms], averaged=[True])
    assert not agree([averages[0] + 2.0], [terms], averaged=[True])
    assert not agree(averages, [terms], averaged=[False])

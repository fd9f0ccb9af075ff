from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx import safe_names


@pytest.mark.parametrize(
    "function",
    [
        torch.add,
        torch.flatten,
        torch.cat,
        torch.einsum,
        torch.split,
        torch.conv2d,
        F.relu,
        F.gelu,
        F.max_pool2d,
        F.adaptive_avg_pool2d,
        F.scaled_dot_product_attention,
        F.interpolate,
        F.pad,
        torch._assert,
        torch.linalg.vector_norm,
        torch.fft.rfft2,
        torch.special.expit,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.zeros.default,
        operator.add,
        operator.getitem,
        operator.setitem,
        math.sqrt,
        getattr,
        int,
    ],
)
def test_functions_on_tensors_have_a_name_that_leads_back(function: Callable[..., Any]) -> None:
    name = safe_names.name_of_function(function)
    assert name is not None
    assert safe_names.function_named(name) is function


def test_functions_of_the_vision_libraries_have_names() -> None:
    ops = pytest.importorskip("torchvision.ops")
    timm_layers = pytest.importorskip("timm.layers.activations")
    for function in (ops.stochastic_depth, ops.roi_align, timm_layers.gelu):
        name = safe_names.name_of_function(function)
        assert name is not None
        assert safe_names.function_named(name) is function


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.open",
        "builtins.setattr",
        "operator.attrgetter",
        "operator.methodcaller",
        "operator.call",
        "torch.load",
        "torch.save",
        "torch.from_file",
        "torch.frombuffer",
        "torch.compile",
        "torch.fork",
        "torch.hub.load",
        "torch.nn.functional.importlib",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.functional.warnings",
        "torch.serialization.os.system",
        "torch.ops.load_library",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.add.__call__",
        "torch.ops.aten._unsafe_index.Tensor",
        "torch.ops.aten.__class__.default",
        "torch.ops.prims.add.default",
        "torch.sparse_coo_tensor",
        "torch._C._cuda_init",
        "torchvision.io.read_file",
        "torchvision.ops.boxes.torch",
        "timm.create_model",
        "timm.models.load_checkpoint",
        "",
        "torch",
    ],
)
def test_anything_else_is_unknown(path: str) -> None:
    assert safe_names.function_named(path) is None
    assert safe_names.module_class_named(path) is None


def test_attributes_may_not_refer_to_python_functions() -> None:
    assert safe_names.function_named("builtins.getattr") is getattr
    assert safe_names.tensor_function_named("builtins.getattr") is None
    assert safe_names.tensor_function_named("operator.add") is None
    assert safe_names.tensor_function_named("torch.nn.functional.relu") is F.relu


def test_module_classes_are_found_but_none_that_holds_code() -> None:
    assert safe_names.module_class_named("torch.nn.modules.conv.Conv2d") is nn.Conv2d
    assert safe_names.module_class_named(safe_names.path_of(nn.Module)) is nn.Module
    assert safe_names.module_class_named("torch.fx.graph_module.GraphModule") is None
    assert not safe_names.is_module_class(torch.fx.GraphModule)
    assert not safe_names.is_module_class(torch.jit.ScriptModule)
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    assert not safe_names.is_module_class(extraction.DualGraphModule)
    assert safe_names.module_class_named("torchvision.models.feature_extraction.DualGraphModule") is None
    assert safe_names.module_class_named("torch.nn.modules.conv.Tensor") is None


def test_methods_compute_only() -> None:
    methods = safe_names.tensor_methods()
    assert {"view", "mean", "add_", "to", "size", "flatten"} <= methods
    assert not {"apply_", "map_", "numpy", "register_hook", "storage", "set_", "data_ptr", "__reduce_ex__"} & methods
    assert not any(name.startswith("_") for name in methods)

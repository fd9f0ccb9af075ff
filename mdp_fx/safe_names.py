"""Which functions, methods and module classes a file may name.

Files that mdp-fx reads (slim.pt, pickled modules) come from anywhere. A name in them is looked up here, in tables that
are built from what torch, torchvision and timm define, and nowhere else: never by importing what the file asks for.
Listed are functions that compute on tensors and touch nothing outside of them, and module classes.
"""

from __future__ import annotations

import builtins
import enum
import importlib
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import fx, nn


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables that are read rather than counted."""
    return frozenset(text.split())


TENSOR_ATTRIBUTES = words(
    "shape dtype device layout ndim T mT H mH real imag data requires_grad is_cuda itemsize nbytes "
    "values indices min max"  # the last ones are fields of what torch.max and others return
)
"""What a graph may read with `getattr`."""

_MODULE_PACKAGES = (
    "torch.nn.modules.",
    "torch.nn.parallel.data_parallel.",
    "torchvision.models.",
    "torchvision.ops.",
    "timm.layers.",
    "timm.models.",
    "mdp_fx.models.",
)
_DETECTION = "torchvision.models.detection._utils."
HELPERS = frozenset(
    (
        *(
            _DETECTION + name
            for name in words("BalancedPositiveNegativeSampler BoxCoder BoxLinearCoder Matcher SSDMatcher")
        ),
        "torchvision.ops.poolers.LevelMapper",
    )
)
"""Classes of torchvision's detectors that are no modules, and hold numbers only."""

_CODE_MODULES = (fx.GraphModule, torch.jit.ScriptModule)  # they hold source or byte code, not only numbers
_OPERATORS = words(
    "abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul index inv "
    "invert ior ipow irshift isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem "
    "sub truediv truth xor"
)
_BUILTINS = words("abs bool float getattr int len max min round sum")
# Reads and writes files or raw memory, or hands the tensor to kernels that do not check their arguments.
_UNSAFE_OPS = re.compile(
    r"_|from_file|from_numpy|from_dlpack|frombuffer|asarray|set_|resize|sparse_|fbgemm_|mkldnn_|miopen_|cudnn_|"
    r"quantized_|save|load|record_stream|nested_"
)
_UNSAFE_METHODS = words(
    "apply_ as_subclass backward const_data_ptr data_ptr map2_ map_ module_load numpy pin_memory record_stream "
    "register_hook register_post_accumulate_grad_hook reinforce share_memory_ storage storage_type "
    "to_mkldnn untyped_storage"
)
_TENSORLESS_OPS = words("arange empty eye full linspace ones scalar_tensor zeros")
_WRAPPED_BY_TORCHVISION = ("_get_relative_position_bias", "_patch_merging_pad", "shifted_window_attention")


def function_named(path: str) -> Callable[..., Any] | None:
    """The harmless function that `path` names, or None."""
    if path.startswith("torch.ops."):
        return _operator_overload(path)
    package = path.partition(".")[0]
    table = {"torchvision": _torchvision_functions, "timm": _timm_functions}.get(package, _torch_functions)
    return table().get(path)


def tensor_function_named(path: str) -> Callable[..., Any] | None:
    """The same without Python's own functions, for places where a file calls functions on anything, not on nodes."""
    return function_named(path) if path.startswith(("torch.", "torchvision.", "timm.")) else None


def name_of_function(function: object) -> str | None:
    """The name under which `function_named` finds `function`, or None."""
    if isinstance(function, torch._ops.OpOverload):
        path = f"torch.ops.{function}"
        return path if _operator_overload(path) is function else None
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    table = {"torchvision": _torchvision_functions, "timm": _timm_functions}.get(package, _torch_functions)
    return next((path for path, listed in table().items() if listed is function), None)


@lru_cache(maxsize=1)
def tensor_methods() -> frozenset[str]:
    """Names of the methods that a graph may call: public ones of torch.Tensor that only compute."""
    return frozenset(
        name
        for name in dir(torch.Tensor)
        if not _UNSAFE_OPS.match(name) and name not in _UNSAFE_METHODS and callable(getattr(torch.Tensor, name))
    )


def module_class_named(path: str) -> type[nn.Module] | None:
    """The nn.Module subclass of torch.nn, torchvision or timm that `path` names, or None."""
    found = _lookup(path)
    return found if isinstance(found, type) and issubclass(found, nn.Module) and is_module_class(found) else None


def is_module_class(cls: type) -> bool:
    """Whether objects of `cls` may be rebuilt from a file: a module class of a known package that holds no code."""
    if not issubclass(cls, nn.Module) or issubclass(cls, _CODE_MODULES):
        return False
    return f"{cls.__module__}.".startswith(_MODULE_PACKAGES)


def enum_named(path: str) -> type[enum.Enum] | None:
    """The enumeration of torch.nn, torchvision or timm that `path` names, or None."""
    found = _lookup(path)
    if isinstance(found, type) and issubclass(found, enum.Enum) and found.__module__.startswith(_MODULE_PACKAGES):
        return found
    return None


def plain_class_named(path: str, known: Iterable[str]) -> type | None:
    """The class that `path` names if it is one of `known`, or None."""
    found = _lookup(path) if path in known else None
    return found if isinstance(found, type) else None


def path_of(cls: type) -> str:
    """Full name of a class, as the functions of this file take it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _lookup(path: str) -> object:
    """What `module.name` names in a listed package; modules are taken as loaded, never imported on a file's word."""
    if not path.startswith(_MODULE_PACKAGES):
        return None
    package = path.partition(".")[0]
    if not _import(package):
        return None
    module, _, name = path.rpartition(".")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


@lru_cache(maxsize=8)
def _import(package: str) -> bool:
    """Whether the optional package is there; its models are imported with it."""
    names = {
        "torchvision": ("torchvision.models", "torchvision.ops"),
        "timm": ("timm",),
        "mdp_fx": ("mdp_fx.models.ssd",),
    }.get(package, ())
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


@lru_cache(maxsize=1)
def _torch_functions() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {"torch._assert": torch._assert}
    functional = {name: getattr(torch.functional, name) for name in torch.functional.__all__}
    _add(table, "torch", {**vars(torch), **functional}, torch._C._VariableFunctions, functional.values())
    functions = [f for f in vars(nn.functional).values() if getattr(f, "__module__", "") == "torch.nn.functional"]
    _add(table, "torch.nn.functional", vars(nn.functional), torch._C._nn, functions)
    _add(table, "torch._C._nn", vars(torch._C._nn), torch._C._nn)
    for namespace in (torch.special, torch.linalg, torch.fft):
        short = namespace.__name__.partition(".")[2]
        built_in = vars(getattr(torch._C, f"_{short}"))
        table |= {
            f"torch.{short}.{name}": value
            for name, value in vars(namespace).items()
            if built_in.get(f"{short}_{name}") is value
        }
    table |= {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    table |= {f"builtins.{name}": getattr(builtins, name) for name in _BUILTINS}
    table |= {f"math.{name}": value for name, value in vars(math).items() if isinstance(value, BuiltinFunctionType)}
    return table


def _add(
    table: dict[str, Callable[..., Any]],
    prefix: str,
    names: dict[str, Any],
    owner: object,
    functions: Iterable[object] = (),
) -> None:
    """Adds to `table` what is public in `names` and either built in by torch (an attribute of `owner`) or listed."""
    listed = {id(function) for function in functions}
    for name, value in names.items():
        if _UNSAFE_OPS.match(name) or isinstance(value, type | ModuleType) or not callable(value):
            continue
        if getattr(owner, name, None) is value or id(value) in listed:
            table[f"{prefix}.{name}"] = value


@lru_cache(maxsize=1)
def _torchvision_functions() -> dict[str, Callable[..., Any]]:
    if not _import("torchvision"):
        return {}
    ops = sys.modules["torchvision.ops"]
    found = [getattr(ops, name) for name in ops.__all__]
    swin = sys.modules.get("torchvision.models.swin_transformer")
    found += [getattr(swin, name, None) for name in _WRAPPED_BY_TORCHVISION]
    return {f"{f.__module__}.{f.__name__}": f for f in found if isinstance(f, FunctionType)}


@lru_cache(maxsize=1)
def _timm_functions() -> dict[str, Callable[..., Any]]:
    if not _import("timm"):
        return {}
    activations = sys.modules.get("timm.layers.activations")
    found = [f for f in vars(activations).values() if getattr(f, "__module__", "") == "timm.layers.activations"]
    found += getattr(sys.modules.get("timm.layers"), "get_notrace_functions", list)()
    return {f"{f.__module__}.{f.__name__}": f for f in found if isinstance(f, FunctionType)}


def _operator_overload(path: str) -> Callable[..., Any] | None:
    match = re.fullmatch(r"torch\.ops\.(aten|torchvision)\.([a-z]\w*)\.(\w+)", path)
    if match is None or _UNSAFE_OPS.match(match[2]) or match[3].startswith("__"):
        return None
    packet = getattr(getattr(torch.ops, match[1]), match[2], None)
    overload = getattr(packet, match[3], None)
    if not isinstance(overload, torch._ops.OpOverload):
        return None
    # TorchScript's own operators (aten::save, aten::open ...) live in the same namespace; they return no tensor.
    schema = overload._schema
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    gives_tensor = all("Tensor" in str(result.type) for result in schema.returns) and bool(schema.returns)
    return overload if gives_tensor and (takes_tensor or match[2] in _TENSORLESS_OPS) else None

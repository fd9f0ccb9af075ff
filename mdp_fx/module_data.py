"""The module tree of a network as plain data, and back.

A tree is a list of records in which children come before their parents and the root is last. Modules, parameters and
buffers that appear under several names appear once and stay shared. Tensors are kept apart, in a dict under the first
name they have in the tree.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from mdp_fx import safe_names
from mdp_fx.errors import ModelError
from mdp_fx.plain_values import Decoder, decode, encode

# These words must be given apart from the attributes of a module, or are rebuilt by torch itself.
_INTERNALS = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_REBUILT_RNN_ATTRIBUTES = frozenset({"_flat_weights", "_flat_weight_refs"})
# What a subclass may redefine and still compute what its parent does.
_HARMLESS_OVERRIDES = safe_names.words(
    "__init__ __module__ __qualname__ __doc__ __repr__ __annotations__ __constants__ __parameters__ __dict__ "
    "__weakref__ __firstlineno__ __static_attributes__ __annotate__ __annotate_func__ extra_repr reset_parameters "
    "_reset_parameters"
)
_GRAPH_INTERNALS = frozenset(vars(fx.GraphModule({}, fx.Graph())))
GraphEncoder: TypeAlias = Callable[[fx.GraphModule], tuple[list[Any], set[int], dict[int, set[str]]]]
GraphDecoder: TypeAlias = Callable[[nn.Module, list[Any]], fx.GraphModule]
_SAFE_NAME = re.compile(r"[\w-]+")


def check_name(name: object, what: str) -> str:
    """Returns `name` if it can stand in generated code as (part of) a module path.

    Raises:
        ModelError: it is no string or holds other characters than letters, digits, `_` and `-`, or starts with `__`.
    """
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name) or name.startswith("__"):
        raise ModelError(f"{str(name)[:60]!r} is not usable as the name of a {what}")
    return name


class TreeEncoder:
    """Describes a module tree.

    Attributes:
        records: one per module, children first.
        tensors: parameters, buffers and other tensors under their first names (detached).
    """

    def __init__(
        self, root: nn.Module, called: set[int], attributes: dict[int, set[str]], graphs: GraphEncoder | None = None
    ) -> None:
        """Describes `root`.

        Args:
            root: the tree.
            called: ids of the modules that run as such; the others only hold names together.
            attributes: for ids of modules, the plain attributes of theirs that the graph reads.
            graphs: describes GraphModules that run: their nodes, and `called` and `attributes` of each. Without it,
                they have no plain form.

        Raises:
            ModelError: a module, named in the message, has no plain form.
        """
        self.records: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self._read = dict(attributes)
        self._called = set(called)
        self._graphs = graphs
        self._indices: dict[int, int] = {}
        self._keys: dict[int, str] = {}
        self._add(root, "", False)

    def _add(self, module: nn.Module, name: str, runs: bool) -> int:
        runs = runs or id(module) in self._called
        if id(module) in self._indices:
            return self._indices[id(module)]
        where = f"module {name or 'root'} ({type(module).__name__})"
        if any(vars(module).get(hook) for hook in _HOOKS):
            advice = "remove them first (weight_norm and spectral_norm have functions for that)"
            raise ModelError(f"{where} has hooks, which cannot be saved; {advice}")
        nodes: list[Any] | None = None
        if runs and self._graphs is not None and isinstance(module, fx.GraphModule):
            nodes, called, read = self._graphs(module)
            self._called |= called
            self._read |= read
            # The graph runs: what it calls does too, what holds names together does not.
            runs = False
        prefix = f"{name}." if name else ""
        children = [
            [check_name(key, "module"), None if child is None else self._add(child, prefix + key, runs)]
            for key, child in module._modules.items()
        ]
        record: dict[str, Any] = {
            "class": safe_names.path_of(nn.Module),
            "training": bool(module.training),
            "children": children,
            "parameters": [
                [check_name(key, "parameter"), self._tensor(value, prefix + key), value is None or value.requires_grad]
                for key, value in module._parameters.items()
            ],
            "buffers": [
                [check_name(key, "buffer"), self._tensor(value, prefix + key), _persists(module, key)]
                for key, value in module._buffers.items()
            ],
            "attributes": [],
        }
        names = self._read.get(id(module), set())
        if nodes is not None:
            record["nodes"] = nodes
            names = names | (set(vars(module)) - _GRAPH_INTERNALS)
        cls, optional = (nn.Module, frozenset[str]()) if not runs else _storable_class(module, where)
        if runs:
            skipped = _INTERNALS | (_REBUILT_RNN_ATTRIBUTES if isinstance(module, nn.RNNBase) else frozenset())
            names = set(vars(module)) - skipped
        record["class"] = safe_names.path_of(cls)
        record["attributes"] = self._attributes(module, cls, sorted(names), optional, prefix, where)
        self.records.append(record)
        self._indices[id(module)] = len(self.records) - 1
        return self._indices[id(module)]

    def _attributes(
        self, module: nn.Module, cls: type, names: list[str], optional: frozenset[str], prefix: str, where: str
    ) -> list[list[Any]]:
        found: list[list[Any]] = []
        for name in names:

            def special(value: object, key: str = prefix + name) -> list[Any] | None:
                if isinstance(value, Tensor):
                    return ["tensor", [self._tensor(value, key), isinstance(value, nn.Parameter), value.requires_grad]]
                return _encode_reference(value)

            try:
                found.append([_check_attribute(cls, name), encode(getattr(module, name), special)])
            except ModelError as error:
                if name in optional:
                    continue
                raise ModelError(f"{where} cannot be saved: its attribute {name!r} is or holds {error}") from error
        return found

    def _tensor(self, value: Tensor | None, name: str) -> str | None:
        if value is None:
            return None
        if id(value) not in self._keys:
            if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.is_sparse or value.is_quantized:
                raise ModelError(f"{name} is a {type(value).__name__} of layout {value.layout}, which cannot be saved")
            key = name
            while key in self.tensors:  # two tensors in one list attribute
                key += "_"
            self._keys[id(value)] = key
            self.tensors[key] = value.detach()
        return self._keys[id(value)]


def decode_tree(records: Any, tensors: dict[str, Tensor], graphs: GraphDecoder | None = None) -> nn.Module:
    """Rebuilds the module tree that a TreeEncoder described.

    Modules are made without running their constructors; only classes of torch.nn, torchvision and timm are made.
    `graphs` makes GraphModules of what the encoder's `graphs` said of them.

    Raises:
        ModelError: the records are damaged or ask for anything else.
    """
    modules: list[nn.Module] = []
    loaded: dict[tuple[str, bool], Tensor] = {}

    def tensor(key: Any, is_parameter: bool, requires_grad: bool) -> Tensor | None:
        if key is None:
            return None
        if (key, is_parameter) not in loaded:
            value = tensors[key]
            loaded[key, is_parameter] = nn.Parameter(value, bool(requires_grad)) if is_parameter else value
        return loaded[key, is_parameter]

    references: dict[str, Decoder] = {**_REFERENCES, "tensor": lambda payload: tensor(*payload)}
    for record in records:
        cls = safe_names.module_class_named(record["class"])
        if cls is None:
            raise ModelError(
                f"module class {str(record['class'])[:80]} is not known to this torch, torchvision or timm"
            )
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.training = bool(record["training"])
        for name, data in record["attributes"]:
            vars(module)[_check_attribute(cls, name)] = decode(data, references)
        for name, key, requires_grad in record["parameters"]:
            module._parameters[check_name(name, "parameter")] = tensor(key, True, requires_grad)  # type: ignore[assignment]
        for name, key, persistent in record["buffers"]:
            module._buffers[check_name(name, "buffer")] = tensor(key, False, False)
            if not persistent:
                module._non_persistent_buffers_set.add(name)
        for name, index in record["children"]:
            if index is not None and not 0 <= index < len(modules):
                raise ModelError(f"module {name!r} comes before its children")
            module._modules[check_name(name, "module")] = None if index is None else modules[index]
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
        modules.append(graphs(module, record["nodes"]) if graphs is not None and "nodes" in record else module)
    return modules[-1]


def _persists(module: nn.Module, name: str) -> bool:
    return name not in module._non_persistent_buffers_set


def _storable_class(module: nn.Module, where: str) -> tuple[type[nn.Module], frozenset[str]]:
    """The class to store a module as, and its attributes that this class cannot know and that may be left out."""
    own: list[type] = []
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        if safe_names.module_class_named(safe_names.path_of(cls)) is not cls:
            own.append(cls)
            continue
        changed = [
            name for part in own for name in vars(part) if name not in _HARMLESS_OVERRIDES and hasattr(cls, name)
        ]
        if changed:
            raise ModelError(f"{where} cannot be saved: its class overrides {changed[0]} of {cls.__name__}")
        return cls, frozenset(vars(module)) - _names_used(cls) if own else frozenset()
    raise ModelError(f"{where} cannot be saved: its class is not from torch.nn, torchvision or timm")


def _check_attribute(cls: type, name: object) -> str:
    if check_name(name, "attribute") in _INTERNALS or callable(getattr(cls, str(name), None)):
        raise ModelError(f"a replacement for {cls.__name__}.{name}, which a file may not hold")
    return str(name)


def _names_used(cls: type) -> frozenset[str]:
    functions = [value for base in cls.__mro__ for value in vars(base).values() if isinstance(value, FunctionType)]
    return frozenset(name for function in functions for name in function.__code__.co_names)


def _encode_reference(value: object) -> list[Any] | None:
    """Encodes what a module's attribute may refer to: functions, classes, enumerations and partial calls of them."""
    if isinstance(value, enum.Enum) and safe_names.enum_named(safe_names.path_of(type(value))) is type(value):
        return ["enum", [safe_names.path_of(type(value)), value.name]]
    if isinstance(value, type):
        path = safe_names.path_of(value)
        return ["class", path] if safe_names.module_class_named(path) is value else None
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return ["partial", [encode(part, _encode_reference) for part in parts]]
    path = safe_names.path_of(type(value))
    if safe_names.plain_class_named(path, safe_names.HELPERS) is type(value):
        return ["helper", [path, encode(vars(value), _encode_reference)]]
    function = safe_names.name_of_function(value) if callable(value) else None
    return ["function", function] if function is not None and safe_names.tensor_function_named(function) else None


def _decode_function(path: Any) -> Any:
    function = safe_names.tensor_function_named(path)
    if function is None:
        raise ModelError(f"function {str(path)[:80]} is not known or not allowed in a file")
    return function


def _decode_class(path: Any) -> Any:
    cls = safe_names.module_class_named(path)
    if cls is None:
        raise ModelError(f"class {str(path)[:80]} is not known or not allowed in a file")
    return cls


def _decode_helper(payload: Any) -> Any:
    path, data = payload
    cls = safe_names.plain_class_named(path, safe_names.HELPERS)
    if cls is None:
        raise ModelError(f"class {str(path)[:80]} is not known or not allowed in a file")
    made: Any = object.__new__(cls)
    attributes = decode(data, _REFERENCES)
    vars(made).update({_check_attribute(cls, name): value for name, value in attributes.items()})
    return made


def _decode_enum(payload: Any) -> Any:
    path, name = payload
    cls = safe_names.enum_named(path)
    if cls is None or name not in cls.__members__:
        raise ModelError(f"constant {str(path)[:80]}.{str(name)[:40]} is not known or not allowed in a file")
    return cls[name]


def _decode_partial(payload: Any) -> Any:
    function, args, keywords = (decode(part, _REFERENCES) for part in payload)
    return functools.partial(function, *args, **keywords)


_REFERENCES: dict[str, Decoder] = {
    "function": _decode_function,
    "class": _decode_class,
    "enum": _decode_enum,
    "helper": _decode_helper,
    "partial": _decode_partial,
}

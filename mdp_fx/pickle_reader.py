"""Reading .pt files: what kind they are, and pickles without running code from them.

torch's weights_only unpickler builds only objects of classes on a list. It calls constructors and functions on that
list with arguments from the file, so a listed module class would still run its constructor on them. Here the unpickler
gets stand-ins instead: subclasses that can only be made empty and filled with attributes. After loading they are turned
into the real classes. Names that are not on the list get stand-ins that hold nothing; they are an error only where the
model needs them, so a training checkpoint may carry any configuration objects beside its weights.
"""

from __future__ import annotations

import functools
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mdp_fx import safe_names
from mdp_fx.errors import ModelError, first_line
from mdp_fx.files import holds_json, reading

# Classes of torchvision's detectors that are no modules: plain attributes and arithmetic.
_PLAIN_CLASSES = frozenset(
    f"torchvision.models.detection._utils.{name}"
    for name in ("BalancedPositiveNegativeSampler", "BoxCoder", "BoxLinearCoder", "Matcher", "SSDMatcher")
) | {"torchvision.ops.poolers.LevelMapper", "torchvision.models.detection.image_list.ImageList"}
_REGISTRIES = {"_modules": nn.Module, "_parameters": nn.Parameter, "_buffers": Tensor}
# Anything else could end the string that torch.fx writes such a name into when it generates code.
_SAFE_NAME = re.compile(r"[^\x00-\x1f\"'\\{}().]+")


class _Foreign:
    """Stands for an object of a class that is not on the list; forgets what it is given."""

    path: ClassVar[str]

    def __new__(cls, *_: Any) -> _Foreign:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Empty:
    """Mixed into a stand-in: it can be made without arguments only, and runs no constructor."""

    real: ClassVar[type]

    def __new__(cls, *args: Any) -> Any:
        if args:
            raise pickle.UnpicklingError(f"{cls.real.__name__} is called with arguments, which no saved module needs")
        return object.__new__(cls)

    def __init__(self) -> None:
        pass


def read_plain(path: Path) -> Any:
    """Loads a file that holds only tensors and plain data.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    _check_kind(path)
    return _load(path, [])


def read_pickle(path: Path, trust: bool = False) -> Any:
    """Loads a .pt file; its modules are complete only after `materialise`.

    Args:
        path: file to read.
        trust: unpickle it fully, which runs whatever code it names.

    Raises:
        ModelError: it is missing, damaged, of another kind, or its pickle asks for something that is not allowed.
    """
    _check_kind(path)
    return _load_fully(path) if trust else _load(path, _stand_ins(_globals(path)))


def materialise(value: Any, path: Path) -> Any:
    """Turns the stand-ins in a part of what `read_pickle` gave into objects of the real classes, in place.

    Args:
        value: a module or anything else; containers and attributes are followed.
        path: file it comes from, for messages.

    Raises:
        ModelError: it needs a class that is not allowed, or its modules are not put together as torch's are.
    """
    memo: dict[int, tuple[Any, Any]] = {}
    try:
        result = _materialise(value, memo, path)
    except RecursionError as error:
        raise ModelError(f"{path} is damaged: its objects are nested too deeply") from error
    for _, part in memo.values():
        if isinstance(part, nn.Module):
            _check_module(part, path)
    return result


def _materialise(value: Any, memo: dict[int, tuple[Any, Any]], path: Path) -> Any:
    """Replaces stand-ins; `memo` maps ids to originals, which it keeps alive, and results."""
    if id(value) in memo:
        return memo[id(value)][1]
    cls = value if isinstance(value, type) else type(value)
    if issubclass(cls, _Foreign):
        raise _foreign_error(path, [cls.path])
    if value is cls:
        return cls.real if issubclass(cls, _Empty) else cls

    def inner(part: Any) -> Any:
        return _materialise(part, memo, path)

    result = value
    memo[id(value)] = (value, value)
    if isinstance(value, _Empty):
        object.__setattr__(value, "__class__", value.real)  # not through nn.Module.__setattr__
        vars(value).update({name: inner(part) for name, part in vars(value).items()})
    elif isinstance(value, dict):
        value.update({key: inner(part) for key, part in value.items()})
    elif isinstance(value, list):
        value[:] = map(inner, value)
    elif type(value) in (tuple, set, frozenset):
        result = type(value)(map(inner, value))
    elif isinstance(value, functools.partial):
        keywords = {name: inner(part) for name, part in value.keywords.items()}
        result = functools.partial(inner(value.func), *map(inner, value.args), **keywords)
    memo[id(value)] = (value, result)
    return result


def _check_module(module: nn.Module, path: Path) -> None:
    state = vars(module)
    for registry, kind in _REGISTRIES.items():
        entries = state.get(registry)
        if not isinstance(entries, dict):
            raise ModelError(f"{path} is damaged: a {type(module).__name__} has no {registry}")
        for name, value in entries.items():
            if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
                raise ModelError(f"{path}: {str(name)[:60]!r} is not usable as a name in a module")
            if value is not None and not isinstance(value, kind):
                raise ModelError(f"{path} is damaged: {name!r} in {registry} is a {type(value).__name__}")
    replaced = sorted(name for name in state if callable(getattr(type(module), name, None)))
    if replaced:
        raise ModelError(f"{path}: a {type(module).__name__} replaces its own {replaced[0]}; {_ADVICE}")


def _check_kind(path: Path) -> None:
    """Raises a ModelError for what is not a file that torch.save may have made."""
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name a file in it")
    with reading(path, ModelError), path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise ModelError(f"{path} is empty")
    if path.suffix == ".onnx":
        raise ModelError(f"{path} is an ONNX model; mdp-fx prunes PyTorch models, give the one it was exported from")
    if not head.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path} is truncated or damaged; copy or save it again") from error
    if "constants.pkl" in names:
        raise ModelError(f"{path} is a TorchScript archive; mdp-fx needs the Python module or its state dict")
    if "data.pkl" not in names:
        raise ModelError(f"{path} is a zip archive, but not one that torch.save made")


def _globals(path: Path) -> set[str]:
    """Names that the pickle in a file asks for and that torch does not know as safe."""
    if not zipfile.is_zipfile(path):
        return set()  # the format of torch < 1.6: torch reads state dicts in it safely, and no modules
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (ValueError, EOFError, IndexError, pickle.UnpicklingError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _stand_ins(names: set[str]) -> list[Any]:
    """What the unpickler is to find under each name, as `torch.serialization.safe_globals` takes it."""
    found: list[Any] = []
    for path in sorted(names):
        cls = safe_names.module_class_named(path) or safe_names.plain_class_named(path, _PLAIN_CLASSES)
        known: Any = safe_names.enum_named(path) or safe_names.tensor_function_named(path)
        if cls is not None:
            known = type(cls.__name__, (_Empty, cls), {"real": cls})
        elif path == "functools.partial":
            known = functools.partial
        found.append((known or type("_Foreign", (_Foreign,), {"path": path}), path))
    return found


def _load(path: Path, stand_ins: list[Any]) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = [name for known, name in stand_ins if isinstance(known, type) and issubclass(known, _Foreign)]
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused and safe_names.module_class_named(refused[1]) and not zipfile.is_zipfile(path):
            raise ModelError(f"{path} holds a module in the format of torch < 1.6; {_ADVICE}") from error
        names = [refused[1]] if refused else foreign
        raise (_foreign_error(path, names) if names else _damaged(path, error)) from error
    except Exception as error:  # a damaged or hostile file can make the unpickler fail in any way
        raise _damaged(path, error) from error


def _load_fully(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), working_folder_importable():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # runs code of the file's own classes
        text = _reason(error)
        if "__main__" in text or "'__mp_main__'" in text:
            advice = "move the class into a module that can be imported and save the model again"
            raise ModelError(f"{path} needs a class of the script that saved it ({text}); {advice}") from error
        if isinstance(error, ImportError | AttributeError):
            raise ModelError(f"{path} needs a class that cannot be imported here: {text}") from error
        raise _damaged(path, error) from error


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Puts the working folder on the import path, as `python -m` does."""
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


_ADVICE = "if you trust the file, pass --trust-pickle, or save the state dict and name its network with --arch"


class ForeignClassError(ModelError):
    """A pickle asks for a class that may not be loaded."""


def _foreign_error(path: Path, names: list[str]) -> ForeignClassError:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    if names[0].startswith("torch.fx."):
        return ForeignClassError(f"{path} holds a torch.fx graph as Python code ({names[0]}); {_ADVICE}")
    return ForeignClassError(
        f"{path} needs {names[0]}{more}, which is not a network class of torch, torchvision or timm; {_ADVICE}"
    )


def _damaged(path: Path, error: Exception) -> ModelError:
    if holds_json(path):
        return ModelError(f"{path} is a JSON file, no network; search spaces are for mdp-fx solve and mdp-fx frontier")
    if "Unsupported operand" in str(error) or "pickle protocol" in str(error):
        return ModelError(f"{path} is a pickle that torch.save did not make in its default way; {_ADVICE}")
    return ModelError(f"{path} is truncated, damaged or not a file of torch.save ({_reason(error)})")


def _reason(error: Exception) -> str:
    core = str(error).partition("WeightsUnpickler error:")[2].strip()  # without torch's advice around it
    return first_line(ValueError(core) if core else error)

"""MODEL as a user names it: a file, one of ours, `torchvision:NAME`, `timm:NAME` or `package.module:factory`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mdp_fx import checkpoint
from mdp_fx.errors import ModelError, first_line
from mdp_fx.models import SHORT_NAMES
from mdp_fx.pickle_reader import materialise, read_pickle, working_folder_importable
from mdp_fx.recipe import Recipe

_LIBRARIES = ("torchvision", "timm")
_SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".tar", ".onnx", ".safetensors", ".pt2", ".h5")
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_MAX_NAMED = 3


@dataclass(frozen=True)
class LoadedModel:
    """A model that was named on the command line.

    Attributes:
        module: the network, on the CPU.
        name: short name for reports and default file names.
        recipe: how it was pruned, where it is a slim.pt.
        pretrained: false where its weights are known to be random.
    """

    module: nn.Module
    name: str
    recipe: Recipe | None = None
    pretrained: bool = True


def load_model(spec: str, *, arch: str | None = None, trust_pickle: bool = False) -> LoadedModel:
    """Loads the model that `spec` names.

    Args:
        spec: a .pt or .safetensors file, a name such as `ssd512-resnet50`, `torchvision:NAME`, `timm:NAME` or
            `package.module:factory`.
        arch: for a file that holds a state dict, the network it belongs to, in one of the last four forms.
        trust_pickle: unpickle files fully, which runs whatever code they name.

    Raises:
        ModelError: there is no such model, or it cannot be read; one line that says why.
    """
    if _names_file(spec):
        loaded = _load_file(Path(spec), arch, trust_pickle)
    elif arch is not None:
        raise ModelError(f"--arch is for files that hold a state dict; {spec} is none")
    else:
        loaded = _build(spec)
    check_finite(loaded.module)
    return loaded


def check_finite(module: nn.Module) -> None:
    """Checks the weights of a network.

    Raises:
        ModelError: a parameter (named) has NaN or infinite entries, or a buffer NaN ones (masks may be infinite).
    """
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise ModelError(f"parameter {name} has no values yet; run the lazy module on an input and save it again")
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            kind = "NaN" if bool(torch.isnan(parameter).any()) else "infinite"
            raise ModelError(f"parameter {name} has {kind} values; train the network again or load an earlier state")
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise ModelError(f"buffer {name} has NaN values; train the network again or load an earlier state")


def _names_file(spec: str) -> bool:
    try:
        if Path(spec).exists():
            return True
    except OSError:  # such as a name that is too long for a file
        return False
    prefix, colon, _ = spec.partition(":")
    return Path(spec).suffix in _SUFFIXES and not (colon and prefix in _LIBRARIES)


def _load_file(path: Path, arch: str | None, trust: bool) -> LoadedModel:
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    else:
        content = read_pickle(path, trust)
    if (found := checkpoint.slim_in(content, str(path))) is not None:
        slim = checkpoint.unpack(found, str(path))
        return LoadedModel(slim.module, path.stem, slim.recipe)
    state = _state_dict(content)
    if state is None:
        module = _unwrap(content) if trust else materialise(_unwrap(content), path)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{path} holds a {type(module).__name__}, neither a module nor a state dict")
        if arch is not None:
            raise ModelError(f"{path} holds a whole module; --arch is for state dicts, leave it out")
        if isinstance(module, nn.DataParallel):
            module = module.module
        return LoadedModel(module, path.stem)
    if arch is None:
        raise ModelError(f"{path} holds a state dict; name its network, for example --arch torchvision:resnet50")
    module = _build(arch).module
    _load_state(module, state, path, arch)
    return LoadedModel(module, path.stem)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(f"reading {path} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise ModelError(f"cannot read {path} as safetensors: {first_line(error)}") from error


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The state dict that loaded content is or wraps, or None."""
    inner = _unwrap(content)
    if not isinstance(inner, Mapping) or not inner:
        return None
    tensors = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        return None
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _unwrap(content: Any) -> Any:
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping | nn.Module):
                return content[key]
    return content


def _load_state(module: nn.Module, state: dict[str, Tensor], path: Path, arch: str) -> None:
    own = module.state_dict()
    wrong = [
        f"{name} is {_shape(state[name])} in the file and {_shape(value)} in the network"
        for name, value in own.items()
        if name in state and isinstance(value, Tensor) and state[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "of another shape": wrong,
    }
    found = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        advice = "a network with other sizes can be given as --arch package.module:factory"
        raise ModelError(f"the state dict in {path} does not fit {arch}: {'; '.join(found)} ({advice})")
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"the state dict in {path} does not fit {arch}: {first_line(error)}") from error


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a scalar"


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _build(spec: str) -> LoadedModel:
    """Builds a network by name, with random weights that are the same in every run."""
    if spec in SHORT_NAMES:
        _require("torchvision")
        with _seeded():
            return LoadedModel(_build_factory("mdp_fx.models", SHORT_NAMES[spec]), spec, pretrained=False)
    prefix, colon, name = spec.partition(":")
    builder = {"torchvision": _build_torchvision, "timm": _build_timm}.get(prefix)
    if colon and builder is not None:
        with _seeded():
            return LoadedModel(builder(name), name.replace("/", "_"), pretrained=False)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        with _seeded():
            return LoadedModel(_build_factory(prefix, name), name)
    ours = ", ".join(SHORT_NAMES)
    hint = f"MODEL is a .pt file, torchvision:NAME, timm:NAME, package.module:factory or one of {ours}"
    near = difflib.get_close_matches(spec.lower(), SHORT_NAMES, 1, 0.75)
    if near:
        hint = f"did you mean {near[0]}?"
    for library, names in (("torchvision", _torchvision_names), ("timm", _timm_names)):
        if not colon and spec in names():
            hint = f"did you mean {library}:{spec}?"
            break
    raise ModelError(f"there is no file {spec}; {hint}")


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixes the random weights, and puts the generator back as it was."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _torchvision_names() -> list[str]:
    try:
        from torchvision.models import list_models
    except ImportError:
        return []
    return list(list_models())


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def _build_torchvision(name: str) -> nn.Module:
    _require("torchvision")
    from torchvision.models import get_model, get_model_builder

    if name not in _torchvision_names():
        raise _unknown("torchvision", name, _torchvision_names())
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # detectors download a pretrained backbone otherwise
    return _module(lambda: get_model(name, **options), f"torchvision:{name}")


def _build_timm(name: str) -> nn.Module:
    _require("timm")
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, _timm_names())
    return _module(lambda: timm.create_model(name, pretrained=False), f"timm:{name}")


def _build_factory(module: str, name: str) -> nn.Module:
    spec = f"{module}:{name}"

    def build() -> Any:
        with working_folder_importable():
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            return found if isinstance(found, nn.Module) else found()

    try:
        return _module(build, spec)
    except ModelError as error:
        near = difflib.get_close_matches(module, _LIBRARIES, 1)
        if near and isinstance(error.__cause__, ModuleNotFoundError):
            raise ModelError(f"there is no module {module!r}; did you mean {near[0]}:{name}?") from error
        raise


def _module(build: Callable[[], Any], spec: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision's notes on future initialisation
            result = build()
    except Exception as error:  # foreign code: whatever it raises, the model cannot be built
        raise ModelError(f"cannot build {spec}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(result, nn.Module):
        raise ModelError(f"{spec} gives a {type(result).__name__}, not a torch.nn.Module")
    return result


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ModelError(f"{package} models need the package {package}: pip install 'mdp-fx[vision]'") from error


def _unknown(library: str, name: str, names: list[str]) -> ModelError:
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"{library} lists its models with its list_models()"
    return ModelError(f"{library} has no model {name!r}; {hint}")

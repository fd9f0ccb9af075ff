"""What the options of several commands name: outputs are checked, networks are loaded, inputs are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdp_fx.model_source import LoadedModel
    from mdp_fx.recipe import Recipe


def check_outputs(paths: dict[str, Path | None], force: bool, inputs: Sequence[str | Path] = ()) -> None:
    """Checks, before the work starts, that every file can be written and that no two are the same.

    Args:
        paths: by option name; None where the option was not given.
        force: allow them to exist.
        inputs: what the command reads; what is no file is passed over.

    Raises:
        OutputError: one cannot be written, exists, is named twice, or is an input.
    """
    from mdp_fx.errors import OutputError
    from mdp_fx.files import check_output, same_file

    seen: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        if any(same_file(path, each) for each in inputs):
            raise OutputError(f"{option} {path} is what is read; name another output file")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            msg = f"{other} and {option} both name {path}; give them different files"
            raise OutputError(msg)
        check_output(path, force)


def load(spec: str, arch: str | None, trust_pickle: bool) -> LoadedModel:
    """Loads MODEL, or raises a MdpFxError."""
    from mdp_fx.model_source import load_model

    return load_model(spec, arch=arch, trust_pickle=trust_pickle)


@dataclass(frozen=True)
class ToScore:
    """A network with what scoring it needs.

    Attributes:
        loaded: the network.
        inputs: example inputs.
        data: batches, if any were named.
        loss: criterion, None for the default.
    """

    loaded: LoadedModel
    inputs: tuple[Any, ...]
    data: Any | None
    loss: Callable[..., Any] | None


def load_to_score(
    spec: str,
    arch: str | None,
    trust_pickle: bool,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    data: str | None,
    loss: str | None,
    seed: int,
) -> ToScore:
    """Loads MODEL, what `input_options` feed it, and what `scoring_options` name; or raises a MdpFxError."""
    from mdp_fx.data import load_function, load_loader

    criterion = load_function(loss, "loss") if loss not in (None, "cross-entropy") else None
    loaded = load(spec, arch, trust_pickle)
    inputs = make_inputs(shapes, batch, loaded)
    batches = load_loader(data, tuple(inputs[0].shape[1:]), batch_size=32, seed=seed) if data is not None else None
    return ToScore(loaded, inputs, batches, criterion)


def input_shapes(shapes: tuple[tuple[int, ...], ...], recipe: Recipe | None = None) -> tuple[tuple[int, ...], ...]:
    """The shapes asked for; where none are, a slim network's own, or the default. All without the batch."""
    from mdp_fx.example_inputs import DEFAULT_SHAPE

    if not shapes and recipe is not None and recipe.input_shapes:
        shapes = tuple(tuple(shape[1:]) for shape in recipe.input_shapes)
    return shapes or (DEFAULT_SHAPE,)


def make_inputs(
    shapes: tuple[tuple[int, ...], ...], batch: int, loaded: LoadedModel, recipe: Recipe | None = None
) -> tuple[Any, ...]:
    """Random example inputs for a network.

    Args:
        shapes: asked for; a slim network's own, or the default, where empty.
        batch: size of axis 0.
        loaded: the network, which says their number type.
        recipe: of the slim network whose shapes count; by default that of `loaded`.
    """
    from mdp_fx.detectors.observation import own_size
    from mdp_fx.example_inputs import parameter_type, random_inputs, recipe_types

    recipe = recipe or loaded.recipe
    size = own_size(loaded.module) if recipe is None and not shapes else None
    wanted = [(batch, *shape) for shape in (((3, *size),) if size is not None else input_shapes(shapes, recipe))]
    if recipe is not None and not shapes:
        return random_inputs(wanted, recipe_types(recipe))
    return random_inputs(wanted, [parameter_type(loaded.module)] * len(wanted))

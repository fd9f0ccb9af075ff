"""What Python may learn of a tensor while a forward is traced: facts that shapes and types decide, not its entries."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

FACTS = frozenset(
    "dim ndimension size numel nelement stride storage_offset element_size get_device type dtype dim_order "
    "is_floating_point is_complex is_signed is_contiguous is_conj is_neg is_inference is_same_size is_set_to is_shared "
    "is_pinned has_names sparse_dim dense_dim result_type can_cast promote_types broadcast_shapes".split()
)
"""Methods and functions of tensors that give plain Python values without a look at entries."""

SIZES = frozenset("size numel nelement stride storage_offset broadcast_shapes is_same_size".split())
"""Those of them that follow the sizes."""

_BY_MASK = ("getitem", "index", "masked_select")
"""What picks entries: the shape depends on the indices, not on what is picked from."""


def decisive(called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call whose entries may decide about the shape of its result."""
    return (args[1:] if called in _BY_MASK else args, kwargs)


class ShapeWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operators that give a result whose shape depends on entries of their operands.

    Attributes:
        seen: whether there was one.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler to leave this alone: that takes a second, and while isinstance stands for
        # another function the compiler would not know the true one afterwards.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operator."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            # Its branches must give the same shapes.
            return func(*args, **kwargs)
        with self:
            # In inference mode operators come here that are made of others.
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        self.seen = self.seen or _shape_follows_entries(func, args, kwargs)
        return func(*args, **kwargs)


def _shape_follows_entries(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func is torch.ops.aten.index.Tensor:
        masks = (torch.bool, torch.uint8)
        return any(isinstance(key, torch.Tensor) and key.dtype in masks for key in args[1])
    if not func.namespace.startswith(("aten", "prim")):
        return _is_open(func, args, kwargs)
    # A number that is taken from entries may become a size.
    return torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags


def _is_open(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the shape is open by what an operator of another library says of itself; also if it says nothing."""
    # They take a while to import, and most networks do without.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(shape_env=ShapeEnv())

    def hollow(leaf: Any) -> Any:
        return fake.from_tensor(leaf, static_shapes=True) if isinstance(leaf, torch.Tensor) else leaf

    try:
        with fake:
            made = func(*pytree.tree_map(hollow, args), **pytree.tree_map(hollow, kwargs))
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it says nothing
        return True
    leaves = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
    return any(not isinstance(size, int) for leaf in leaves for size in leaf.shape)

"""Detectors that no library ships, assembled from torchvision's parts.

detector = mdp_fx.models.ssd512_resnet50(num_classes=21)

The command line knows them by the same names with dashes: `mdp-fx prune ssd512-resnet50`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdp_fx.models.ssd import ssd300_mobilenet_v2, ssd300_resnet50, ssd512_resnet50

__all__ = ["ssd300_mobilenet_v2", "ssd300_resnet50", "ssd512_resnet50"]

SHORT_NAMES = {name.replace("_", "-"): name for name in __all__}
"""Names on the command line, and the functions that build them."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module 'mdp_fx.models' has no attribute {name!r}"
        raise AttributeError(msg)
    from mdp_fx.models import ssd  # torchvision is an extra: knowing the names must not need it

    return getattr(ssd, name)

"""The networks that must be prunable: what torchvision, timm and transformers ship for vision, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...]]

TIMM = Path(__file__).parent / "timm_networks.txt"
"""A line for each: family (timm's module), name, millions of parameters."""

BACKBONE = ".backbone"
"""Ends the name of a detector's backbone."""

TORCHVISION = (
    torchvision.models,
    torchvision.models.segmentation,
    torchvision.models.video,
    torchvision.models.optical_flow,
    torchvision.models.detection,
)


@dataclass(frozen=True)
class Network:
    """A network by name.

    Attributes:
        library: "torchvision", "timm" or "transformers".
        name: its name there.
        family: the module that defines it.
        millions: of parameters, roughly (a detector's backbone: those of the detector).
    """

    library: str
    name: str
    family: str
    millions: float

    @property
    def spec(self) -> str:
        """library:name."""
        return f"{self.library}:{self.name}"


def networks() -> list[Network]:
    """All networks."""
    return [*_torchvision_networks(), *_timm_networks(), *_transformers_networks()]


def find(spec: str) -> Network:
    """The network with a spec.

    Raises:
        LookupError: there is none.
    """
    for network in networks():
        if network.spec == spec:
            return network
    raise LookupError(f"no network {spec!r} in the list")


def build(network: Network) -> Built:
    """A network with random weights in eval mode, and positional inputs for it; the same ones every time."""
    torch.manual_seed(0)
    builders: dict[str, Callable[[str], Built]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "transformers": lambda name: TRANSFORMERS[name](),
    }
    model, inputs = builders[network.library](network.name)
    return model.eval(), inputs


def _torchvision_networks() -> list[Network]:
    found = []
    for module in TORCHVISION:
        for name in torchvision.models.list_models(module=module):
            weights = next(iter(torchvision.models.get_model_weights(name)))
            detector = module is torchvision.models.detection
            family = "detection" if detector else torchvision.models.get_model_builder(name).__module__.split(".")[-1]
            millions = weights.meta["num_params"] / 1e6
            found.append(Network("torchvision", name + BACKBONE * detector, family, millions))
    return found


def _torchvision(name: str) -> Built:
    module = torchvision.models.get_model_builder(name.removesuffix(BACKBONE)).__module__
    options: dict[str, Any] = {"weights": None}
    if ".segmentation" in module or ".detection" in module:
        options["weights_backbone"] = None
    if "inception" in name or "googlenet" in name:
        options["init_weights"] = True
    model = torchvision.models.get_model(name.removesuffix(BACKBONE), **options)
    if name.endswith(BACKBONE):
        model = model.backbone
    return model, _torchvision_inputs(name, module)


def _torchvision_inputs(name: str, module: str) -> tuple[torch.Tensor, ...]:
    """Inputs about as small as the network takes."""
    if ".optical_flow" in module:
        return torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)
    if ".video" in module:
        side = 112 if ".resnet" in module else 224
        return (torch.randn(1, 3, 16, side, side),)
    sides = {"inception_v3": 299, "ssd300_vgg16.backbone": 300, "ssdlite320_mobilenet_v3_large.backbone": 320}
    if name in sides:
        return (torch.randn(2, 3, sides[name], sides[name]),)
    if any(part in name for part in ("vit", "swin")):
        return (torch.randn(2, 3, 224, 224),)
    side = 96 if ".segmentation" in module or ".detection" in module else 64
    return (torch.randn(2, 3, side, side),)


def _timm_networks() -> list[Network]:
    rows = [line.split() for line in TIMM.read_text(encoding="utf-8").splitlines()]
    return [Network("timm", name, family, float(millions)) for family, name, millions in rows]


def _timm(name: str) -> Built:
    import timm

    model = timm.create_model(name)
    channels, *size = model.default_cfg["input_size"]
    if max(size) > 400 and not model.default_cfg.get("fixed_input_size"):
        size = [224, 224]  # the same network, in minutes instead of an hour
    return model, (torch.randn(2, channels, *size),)


def _transformers_networks() -> list[Network]:
    return [Network("transformers", name, name, 10.0) for name in TRANSFORMERS]


WIDTHS = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
WINDOWS = {"embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8]}
RESNET = {"depths": [1, 1, 1, 1], "embedding_size": 32, "hidden_sizes": [64, 128, 256, 512]}


def _from_config(model: str, config: str, **options: Any) -> Callable[[], Built]:
    """Builds `model` of a small `config`, both classes of transformers, and an image."""

    def make() -> Built:
        import transformers

        transformers.logging.set_verbosity_error()
        settings = getattr(transformers, config)(**options)
        return getattr(transformers, model)(settings), (torch.randn(2, 3, 224, 224),)

    return make


def _detr() -> Built:
    import transformers

    return _from_config(
        "DetrForObjectDetection",
        "DetrConfig",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(**RESNET, out_features=["stage4"]),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=20,
    )()


TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "resnet": _from_config("ResNetForImageClassification", "ResNetConfig", **RESNET),
    "convnextv2": _from_config(
        "ConvNextV2ForImageClassification", "ConvNextV2Config", depths=[1, 1, 2, 1], hidden_sizes=[32, 64, 96, 128]
    ),
    "vit": _from_config("ViTForImageClassification", "ViTConfig", **WIDTHS),
    "deit": _from_config("DeiTForImageClassification", "DeiTConfig", **WIDTHS),
    "swin": _from_config("SwinForImageClassification", "SwinConfig", **WINDOWS),
    "swinv2": _from_config("Swinv2ForImageClassification", "Swinv2Config", **WINDOWS, window_size=7),
    "beit": _from_config("BeitForImageClassification", "BeitConfig", **WIDTHS, use_relative_position_bias=True),
    "dinov2": _from_config(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
    ),
    "segformer": _from_config("SegformerForSemanticSegmentation", "SegformerConfig", decoder_hidden_size=64),
    "mobilevit": _from_config("MobileViTForImageClassification", "MobileViTConfig"),
    "clip": _from_config("CLIPVisionModelWithProjection", "CLIPVisionConfig", **WIDTHS, image_size=224),
    "siglip": _from_config("SiglipVisionModel", "SiglipVisionConfig", **WIDTHS, image_size=224),
    "detr": _detr,
}

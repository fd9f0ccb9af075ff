"""SSD with a ResNet-50 or MobileNetV2 backbone: torchvision's SSD, default boxes and backbones put together.

What is returned is torchvision's own class: images in [0, 1] go in, of any size, as a list or a batch; train() gives
losses, eval() boxes. Labels count from 1, 0 is the background.
"""

from __future__ import annotations

import bisect
import copy
import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, mobilenet_v2, resnet50
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import Conv2dNormActivation

from mdp_fx.errors import InputError, one_of

Extras = Literal["light", "vgg"]
Weights: TypeAlias = str | Mapping[str, Tensor] | ResNet50_Weights | MobileNet_V2_Weights | None


class SSDFeatures(nn.Module):
    """The feature maps of an SSD.

    Attributes:
        features: the backbone up to the first map.
        extra: what leads from each map to the next.
        out_channels: of the maps, largest map first.
        trunk: names of the modules that hold the classifier that was cut up, which other layers follow.
    """

    def __init__(
        self, features: nn.Module, extra: Sequence[nn.Module], out_channels: Sequence[int], cuts: int = 0
    ) -> None:
        """`cuts` is how many of the first extra layers belong to the classifier too."""
        super().__init__()
        self.trunk = ["features", *(f"extra.{i}" for i in range(cuts))]
        self.features = features
        self.extra = nn.ModuleList(extra)
        self.out_channels = list(out_channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps of shape (batch, channels, height, width) by their number, from (batch, 3, height, width)."""
        maps = [self.features(images)]
        for stage in self.extra:
            maps.append(stage(maps[-1]))
        return OrderedDict((str(i), each) for i, each in enumerate(maps))


class _Conv(NamedTuple):
    """A convolution with its batch norm and activation."""

    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1


class _Layout(NamedTuple):
    """Default boxes, and how the last maps shrink.

    Attributes:
        size: side of the images that the numbers were published for.
        scales: of the boxes on each map, over the side of the image, and one more.
        ratios: aspect ratios on each map, beside 1.
        steps: pixels of the image between the cells of each map, at `size`.
        tail: the layers that make the maps after the fourth.
    """

    size: int
    scales: tuple[float, ...]
    ratios: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    tail: tuple[_Conv, ...]


# Liu et al., SSD (arXiv 1512.02325), and the configurations published with it: SSD512's for Pascal VOC, SSD300's for
# COCO, as torchvision's ssd300_vgg16 and NVIDIA's SSD300 have them (those for Pascal VOC begin with 0.1, 0.2, 0.37).
_SSD300 = _Layout(
    size=300,
    scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    steps=(8, 16, 32, 64, 100, 300),
    tail=(_Conv(256, 3), _Conv(256, 3)),
)
_SSD512 = _Layout(
    size=512,
    scales=(0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    steps=(8, 16, 32, 64, 128, 256, 512),
    tail=(_Conv(256, 3, 2, 1), _Conv(256, 3, 2, 1), _Conv(256, 4, 1, 1)),
)


def ssd512_resnet50(
    num_classes: int = 21,
    *,
    weights_backbone: Weights = None,
    trainable_backbone_layers: int | None = None,
    extras: Extras = "vgg",
    size: int = 512,
    **options: Any,
) -> nn.Module:
    """SSD512 with ResNet-50, the detector of HALP's and MDP's experiments on Pascal VOC.

    ResNet-50 is cut after its third stage, which keeps stride 1, so that the first map has stride 8; further layers
    lead to 7 maps, 64 x 64 to 1 x 1, with 24,564 default boxes. Every layer beyond the backbone has a batch norm.

    Args:
        num_classes: with the background: 21 for Pascal VOC.
        weights_backbone: of torchvision's resnet50: one of its names ("IMAGENET1K_V2", downloaded), a state dict, or
            None for random ones.
        trainable_backbone_layers: stages of the backbone that are trained, the last ones, 0 to 4; all by default.
        extras: the layers from the first to the second map. "vgg": conv5, fc6 and fc7 of SSD with VGG-16, to 1024
            channels, as in the code published with MDP (NVlabs/MDP, ssd). "light": 1 x 1 to 256 and 3 x 3 to 512
            channels, as in NVIDIA's SSD (DeepLearningExamples, PyTorch/Detection/SSD). The maps after it are the same.
        size: side that images are resized to.
        **options: of torchvision's SSD, such as score_thresh.

    Raises:
        InputError: an option makes no sense, or images are too small for 7 maps.
    """
    return _ssd_resnet50(_SSD512, num_classes, weights_backbone, trainable_backbone_layers, extras, size, options)


def ssd300_resnet50(
    num_classes: int = 21,
    *,
    weights_backbone: Weights = None,
    trainable_backbone_layers: int | None = None,
    extras: Extras = "light",
    size: int = 300,
    **options: Any,
) -> nn.Module:
    """SSD300 with ResNet-50: as `ssd512_resnet50` with 6 maps, 38 x 38 to 1 x 1, and 8,732 default boxes.

    With the "light" extras, the default here, these are the layers of NVIDIA's SSD300 (DeepLearningExamples,
    PyTorch/Detection/SSD).

    Args:
        num_classes: with the background.
        weights_backbone: see `ssd512_resnet50`, as for all that follow.
        trainable_backbone_layers: stages of the backbone that are trained.
        extras: the layers from the first to the second map.
        size: side that images are resized to.
        **options: of torchvision's SSD.

    Raises:
        InputError: an option makes no sense, or images are too small for 6 maps.
    """
    return _ssd_resnet50(_SSD300, num_classes, weights_backbone, trainable_backbone_layers, extras, size, options)


def ssd300_mobilenet_v2(
    num_classes: int = 21,
    *,
    weights_backbone: Weights = None,
    trainable_backbone_layers: int | None = None,
    size: int = 300,
    **options: Any,
) -> nn.Module:
    """SSD300 with MobileNetV2: 6 maps, 38 x 38 to 2 x 2, with the scales and aspect ratios of SSD300.

    Maps are taken where SSDLite takes them (Sandler et al., arXiv 1801.04381, section 6.2), inside of the layers that
    halve the map, after their expansion: with strides 8 and 16, and at the end of the backbone. Three more layers
    follow, padded, so that any size will do.

    Args:
        num_classes: with the background.
        weights_backbone: of torchvision's mobilenet_v2; see `ssd512_resnet50`.
        trainable_backbone_layers: stages of the backbone that are trained, the last ones, 0 to 6.
        size: side that images are resized to.
        **options: of torchvision's SSD.

    Raises:
        InputError: an option makes no sense.
    """
    layers = list(_loaded(mobilenet_v2, MobileNet_V2_Weights, weights_backbone).features)
    halving = [i for i, layer in enumerate(layers) if getattr(layer, "stride", 1) == 2]
    starts = [0, *halving, len(layers) - 1, len(layers)]
    _freeze([nn.ModuleList(layers[i:j]) for i, j in itertools.pairwise(starts)], trainable_backbone_layers)
    eighth, sixteenth = halving[-2:]  # whose expansions see the maps with these strides
    (expand_8, *shrink_8), (expand_16, *shrink_16) = layers[eighth].conv, layers[sixteenth].conv
    features = nn.Sequential(*layers[:eighth], expand_8)
    cuts = [
        nn.Sequential(*shrink_8, *layers[eighth + 1 : sixteenth], expand_16),
        nn.Sequential(*shrink_16, *layers[sixteenth + 1 :]),
    ]
    out_channels = [expand_8.out_channels, expand_16.out_channels, layers[-1].out_channels, 512, 256, 256]
    added = [
        _block(channels, [_Conv(out // 2), _Conv(out, 3, 2, 1)], nn.ReLU6)
        for channels, out in itertools.pairwise(out_channels[2:])
    ]
    boxes = _default_boxes(_SSD300, published=False)
    backbone = SSDFeatures(features, [*cuts, *added], out_channels, len(cuts))
    return _assemble(backbone, boxes, size, 300, num_classes, options)


def _ssd_resnet50(
    layout: _Layout,
    num_classes: int,
    weights: Weights,
    trainable: int | None,
    extras: Extras,
    size: int,
    options: Mapping[str, Any],
) -> nn.Module:
    if extras not in get_args(Extras):
        raise InputError(f"unknown extras {extras!r}{one_of(extras, get_args(Extras), 'there are')}")
    resnet = _loaded(resnet50, ResNet50_Weights, weights)
    entry = resnet.layer3[0]
    entry.stride = 1
    entry.conv2.stride = entry.downsample[0].stride = (1, 1)
    parts = OrderedDict(itertools.takewhile(lambda part: part[0] != "layer4", resnet.named_children()))
    stem = [part for name, part in parts.items() if not name.startswith("layer")]
    _freeze([nn.ModuleList(stem), resnet.layer1, resnet.layer2, resnet.layer3], trainable)
    second = 512 if extras == "light" else 1024
    out_channels = [1024, second, 512, 256, *(conv.out for conv in layout.tail)]
    extra = [_light(1024) if extras == "light" else _vgg(1024)]
    inner = (256, 128, *(128 for _ in layout.tail))
    last = (_Conv(512, 3, 2, 1), _Conv(256, 3, 2, 1), *layout.tail)
    for channels, middle, conv in zip(out_channels[1:-1], inner, last, strict=True):
        extra.append(_block(channels, [_Conv(middle), conv]))
    boxes = _default_boxes(layout, published=size == layout.size)
    features = SSDFeatures(nn.Sequential(parts), extra, out_channels)
    return _assemble(features, boxes, size, layout.size, num_classes, options)


def _default_boxes(layout: _Layout, *, published: bool) -> DefaultBoxGenerator:
    """Default boxes; where sizes are not the published ones, the maps themselves say how far their cells lie apart."""
    ratios, scales = [list(each) for each in layout.ratios], list(layout.scales)
    return DefaultBoxGenerator(ratios, scales=scales, steps=list(layout.steps) if published else None)


def _light(channels: int) -> nn.Sequential:
    return _block(channels, [_Conv(256), _Conv(512, 3, 2, 1)])


def _vgg(channels: int) -> nn.Sequential:
    fifth = _block(channels, [_Conv(512, 3, 1, 1)] * 3)
    fully = _block(512, [_Conv(1024, 3, 1, 6, 6), _Conv(1024)])
    return nn.Sequential(nn.MaxPool2d(2), *fifth, nn.MaxPool2d(3, 1, 1), *fully)


def _block(entry: int, layers: Sequence[_Conv], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolutions with batch norm and activation, one after the other; Xavier weights, as those of SSD's heads."""
    made: list[nn.Module] = []
    for conv in layers:
        made.append(
            Conv2dNormActivation(
                *(entry, conv.out, conv.kernel, conv.stride, conv.padding),
                dilation=conv.dilation,
                activation_layer=activation,
            )
        )
        nn.init.xavier_uniform_(made[-1].get_parameter("0.weight"))
        entry = conv.out
    return nn.Sequential(*made)


def _loaded(build: Any, known: Any, weights: Weights) -> Any:
    """torchvision's network with weights, which may be a state dict.

    Raises:
        InputError: there are no weights of that name, or the state dict belongs to another network.
    """
    if isinstance(weights, Mapping):
        network = build(weights=None)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            fault = " ".join(str(error).partition(":")[2].split())[:200]
            msg = f"weights_backbone is no state dict of torchvision's {build.__name__}: {fault}"
            raise InputError(msg) from error
        return network
    if isinstance(weights, str) and weights not in known.__members__:
        hint = one_of(weights, known.__members__, "there are")
        raise InputError(f"torchvision's {build.__name__} has no weights {weights!r}{hint}")
    return build(weights=weights)


def _freeze(stages: Sequence[nn.Module], trainable: int | None) -> None:
    """Leaves the last `trainable` stages to be trained; all where it is None."""
    if trainable is None:
        return
    if not 0 <= trainable <= len(stages):
        raise InputError(f"trainable_backbone_layers is {trainable}; the backbone has {len(stages)} stages")
    for stage in stages[: len(stages) - trainable]:
        stage.requires_grad_(False)


def _assemble(
    features: SSDFeatures,
    boxes: DefaultBoxGenerator,
    size: int,
    usual: int,
    num_classes: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """torchvision's SSD of these parts.

    Raises:
        InputError: there is no class beside the background, or images of `size` leave a map empty.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: it counts the background and needs at least 2")
    shapes = copy.deepcopy(features).to("meta").eval()

    def fits(side: int) -> bool:
        try:
            shapes(torch.empty(1, 3, side, side, device="meta"))
        except RuntimeError:  # a kernel is larger than the map that it is to read
            return False
        return True

    if size < 1 or not fits(size):
        smallest = bisect.bisect_left(range(usual), True, lo=1, key=fits)
        msg = f"images of {size} x {size} are too small for {len(features.out_channels)} feature maps"
        raise InputError(f"{msg}: the smallest size is {smallest}")
    detector: nn.Module = SSD(features, boxes, (size, size), num_classes, **options)
    return detector

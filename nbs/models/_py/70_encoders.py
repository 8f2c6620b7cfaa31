# %% [markdown]
# # Pretrained encoders
#
# > Encoders that have seen a million photographs, under decoders for segmentation.
#
# - skip_showdoc: true

# %%
#| default_exp models.encoders

# %%
#| export
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.optional import import_timm, import_zoo
from ctseg.models.base import EncoderDecoder, check_counts, crop_to, load_weights, pad_to, read_weights
from ctseg.models.weights import SEGMENTATION_MODELS, check_encoder_state
from ctseg.models.weights import find_encoder, no_weights, published_weights

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from fastcore.test import test_close, test_eq
from huggingface_hub import constants
from torch import nn

from ctseg.core.errors import InputError
from ctseg.core.optional import import_timm
from ctseg.core.toys import toy_slices
from ctseg.models.base import count_parameters, overfit

# %% [markdown]
# The best rule-abiding entries of the challenge do not start from random weights. Their encoders were trained on ImageNet, or on web images without labels (DINOv2, DINOv3). The edges and textures of
# photographs turn out to be useful in CT. A network of this page is named by its two halves, `DECODER:ENCODER`:
#
# | name | decoder | encoder |
# |---|---|---|
# | `unet:tf_efficientnet_lite0` | U-Net | EfficientNet-Lite0, ImageNet; its weights need no hub |
# | `unet:resnet34` | U-Net | ResNet-34, ImageNet |
# | `unet:efficientnet_b7` | U-Net | EfficientNet-B7, ImageNet |
# | `segformer:mit_b3` | SegFormer's: all levels to one size, one convolution | Mix Transformer, ImageNet |
# | `dpt:vit_small_patch16_dinov3.lvd1689m` | DPT: levels made out of a plain ViT | DINOv3 |
# | `dpt:vit_small_patch14_dinov2.lvd142m` | DPT | DINOv2 |
#
# `unet++`, `fpn` and `deeplabv3+` are decoders too. The table shows examples; any encoder that [timm](https://github.com/huggingface/pytorch-image-models) knows will do. The decoders are those of
# [segmentation-models-pytorch](https://github.com/qubvel-org/segmentation_models.pytorch). This notebook fits both to the contract of [base](10_base.ipynb): one grey channel, any image size, encode and decode apart.
# [Published weights](65_weights.ipynb) finds the files.

# %% [markdown]
# ## Which network?

# %%
#| export
DECODERS = {
    "unet": "Unet", "unet++": "UnetPlusPlus", "fpn": "FPN", "deeplabv3+": "DeepLabV3Plus",
    "segformer": "Segformer", "dpt": "DPT",
}
NORMS = ("batch", "group")
STATISTICS = ("encoder", "imagenet")

# %%
print(*DECODERS)


# %%
#| export
@dataclass(frozen=True)
class Halves:
    "A decoder and an encoder by name, and the channels at both ends."
    decoder: str  # one of `DECODERS`
    encoder: str  # timm's name
    in_chans: int = 1
    out_chans: int = 55
    width: int = 0  # of the decoder, see `decoder_options`; 0: the library's
    light: bool = False  # a thinner U-Net decoder
    half: bool = False  # a U-Net decoder that stops at half the resolution

    @property
    def model(self) -> str:
        "The name of the network, DECODER:ENCODER."
        return f"{self.decoder}:{self.encoder}"

    @property
    def known_as(self) -> str:
        "What segmentation-models-pytorch calls the encoder; tu-… if timm builds it."
        return find_encoder(self.encoder, self.model)[0]

    def check(self) -> None:
        "`InputError` for a decoder that does not exist, or that cannot read this encoder."
        if self.decoder not in DECODERS:
            raise did_you_mean("decoder", self.decoder, DECODERS)
        if (self.light or self.half) and self.decoder != "unet":
            word = "light" if self.light else "half"
            raise InputError(f"{self.model}: {word} is for unet:…; leave it out")
        if self.decoder != "dpt": return
        plain = self.known_as.startswith("tu-") and "vit" in self.encoder
        if not plain:
            remedy = f"take unet:{self.encoder} or segformer:{self.encoder}"
            raise InputError(f"{self.model}: dpt is for plain vision transformers (vit_…); {remedy}")


# %%
print(Halves("unet", "resnet34").known_as, Halves("segformer", "mit_b3").known_as)
for halves in (Halves("dpt", "resnet34"), Halves("unett", "resnet34")):
    try: halves.check()
    except InputError as e: print(e)

# %% [markdown]
# ## How wide a decoder?
#
# The library's decoders are made for large photographs. Above a small encoder they take more than half of the time. `width` is the number of channels at full resolution, as for the other networks, and the coarser levels follow from it.
# With `light` a U-Net's decoder is thinner at the coarse levels only, where most of its numbers are. With `half` it stops at half the resolution, and its logits are enlarged. Where the slices were enlarged themselves, nothing is lost by it. A [benchmark](../benchmarks/pretrained.ipynb) compares them at equal time.

# %%
#| export
PLAIN_WIDTH = 16  # of the library's decoders

LIGHT = (8, 4, 3, 2, 1)  # channels of a light decoder's levels, the coarsest first, in parts of its width

def decoder_options(
    decoder: str, # one of `DECODERS`
    width: int = 0, # channels at full resolution; 0: the library's
    light: bool = False, # a thinner U-Net decoder
) -> dict[str, Any]: # keywords for the library
    "The channels of all levels of a decoder, in the library's proportions or in those of a light one."
    if light:
        return {"decoder_channels": [part*(width or PLAIN_WIDTH) for part in LIGHT]}
    if not width: return {}
    if decoder in ("unet", "unet++"):
        return {"decoder_channels": [width*2**level for level in reversed(range(5))]}
    keys = {"fpn": "decoder_pyramid_channels", "deeplabv3+": "decoder_channels",
            "segformer": "decoder_segmentation_channels", "dpt": "decoder_fusion_channels"}
    options = {keys[decoder]: 256*width//PLAIN_WIDTH}
    if decoder == "fpn":
        options["decoder_segmentation_channels"] = 128*width//PLAIN_WIDTH
    return options


# %%
for decoder in DECODERS: print(decoder, decoder_options(decoder, 8))
print("light", decoder_options("unet", light=True))


# %% [markdown]
# ## Vision transformers
#
# A vision transformer (ViT) differs from a convolutional encoder in three details. First, position embeddings are made for one image size; timm interpolates them when asked for `dynamic_img_size`.
# Second, DINOv2 cuts the image into patches of 14 pixels, while the decoder needs powers of two. timm resamples the patch embedding to 16 pixels, and an image of 16/14 of the size keeps the grid of positions.
# Third, parts that only the classifier used (the last norm) would never get a gradient, so we remove them.

# %%
#| export
def _vit_options(name: str) -> dict[str, object]:
    "Options for timm that make a ViT take any image size, in patches of 16 pixels."
    options: dict[str, object] = dict(dynamic_img_size=True, num_classes=0)
    if "patch14" in name:
        side = import_timm().get_pretrained_cfg(name).input_size[-1]
        options |= dict(patch_size=16, img_size=side*16//14)
    return options


# %%
print(_vit_options("vit_small_patch16_224"))
print(_vit_options("vit_small_patch14_dinov2.lvd142m"))


# %%
#| export
def _drop_unused(vit: nn.Module) -> None:
    "Remove the parts of a ViT that only its classifier used."
    for unused in ("norm", "fc_norm", "attn_pool", "head_drop"):
        if isinstance(getattr(vit, unused, None), nn.Module):
            setattr(vit, unused, nn.Identity())


@contextlib.contextmanager
def _quiet_timm() -> Iterator[None]:
    "Without timm's warning that an encoder does not use the weights of its classifier."
    timm_log = logging.getLogger("timm")
    before = timm_log.level
    timm_log.setLevel(logging.ERROR)
    try: yield
    finally: timm_log.setLevel(before)


# %%
vit = nn.Module()
vit.norm = nn.LayerNorm(4)
_drop_unused(vit)
print(vit)
with _quiet_timm(): print("timm warns:", logging.getLogger("timm").isEnabledFor(logging.WARNING))


# %% [markdown]
# ## The network of the library

# %%
#| export
def _stop_at_half(unet: nn.Module, halves: Halves) -> None:
    "Take the finest level off a U-Net's decoder; its logits are enlarged instead."
    decoder: Any = unet.decoder  # segmentation_models_pytorch has no types
    decoder.blocks = decoder.blocks[:-1]
    channels = 2*(halves.width or PLAIN_WIDTH)
    head = import_zoo(SEGMENTATION_MODELS, halves.model).base.SegmentationHead
    unet.segmentation_head = head(channels, halves.out_chans, upsampling=2)


# %%
for light in (False, True):
    print(
        decoder_options("unet", 16, light)["decoder_channels"], "→", 2*PLAIN_WIDTH, "at half the resolution"
    )


# %%
#| export
def build_halves(
    halves: Halves,
    pretrained: bool = False, # the library fetches the encoder's published weights
    state: dict[str, torch.Tensor] | None = None, # the encoder's weights as timm publishes them
) -> nn.Module: # with `encoder`, `decoder` and `segmentation_head`
    "The network of segmentation-models-pytorch; from random numbers unless told otherwise."
    known_as = halves.known_as
    options = dict(encoder_name=known_as, in_channels=halves.in_chans, classes=halves.out_chans)
    options["encoder_weights"] = "imagenet" if pretrained else None
    options |= decoder_options(halves.decoder, halves.width, halves.light)
    if known_as.startswith("tu-"):
        if halves.decoder == "dpt": options |= _vit_options(known_as[3:])
        if pretrained or state is not None: options["encoder_weights"] = True
        if state is not None:
            options["pretrained_cfg_overlay"] = dict(state_dict=state)
    library = import_zoo(SEGMENTATION_MODELS, halves.decoder)
    try:
        with _quiet_timm():
            built = getattr(library, DECODERS[halves.decoder])(**options)
    except ValueError as e:  # two halves, or a width, that do not go together
        refusal = " ".join(str(e).split())
        raise InputError(f"{halves.model}: {library.__name__} refuses it ({refusal})") from e
    if halves.decoder == "dpt": _drop_unused(built.encoder.model)
    if halves.half: _stop_at_half(built, halves)
    return built


# %%
torch.manual_seed(0)
resnet = build_halves(Halves("unet", "resnet18", 1, 7)).eval()
dpt = build_halves(Halves("dpt", "vit_tiny_patch16_224", 1, 7)).eval()
for net in (resnet, dpt): print(type(net).__name__, f"{count_parameters(net):,} parameters")
for halves in (Halves("unet++", "mit_b0"), Halves("fpn", "resnet18", width=3)):
    try: build_halves(halves)
    except InputError as e: print(e)


# %% [markdown]
# ## With weights
#
# A file may hold the encoder alone, as timm publishes it, or this whole model, as a run stores it. The tensors of a whole model can be loaded only when its layers have their final form, so they are passed on in `remaining`.

# %%
#| export
@dataclass
class Filled:
    "A network with the weights that were asked for."
    net: Any  # a module of the library
    source: str = ""  # where the encoder's weights are from, in words; "" means random numbers
    remaining: dict[str, torch.Tensor] | None = None  # tensors of the whole model, still to be loaded


# %%
#| export
def _with_state(halves: Halves, state: dict[str, torch.Tensor], path: str | Path) -> nn.Module:
    "The network with the tensors of a file, named as its library names them, in its encoder."
    if halves.known_as.startswith("tu-"):
        check_encoder_state(halves.known_as[3:], state, path)
        return build_halves(halves, state=state)
    built = build_halves(halves)
    encoders = import_zoo(SEGMENTATION_MODELS, halves.model).encoders
    built.encoder = encoders.get_encoder(halves.known_as)  # with three colours, like the file
    classifier = ("fc.", "_fc.", "head.")
    load_weights(built.encoder, {k: v for k, v in state.items() if not k.startswith(classifier)})
    built.encoder.set_in_channels(halves.in_chans, pretrained=True)
    return built


# %%
torch.manual_seed(0)
theirs = import_timm().create_model("resnet18").state_dict()
ours = _with_state(Halves("unet", "resnet18"), theirs, "this page").encoder.model
test_eq(ours.layer2[0].conv1.weight.detach(), theirs["layer2.0.conv1.weight"])


# %%
#| export
def fill_from_file(halves: Halves, path: str | Path) -> Filled:
    "The network with weights out of a file: of its encoder, or of the whole model."
    state = read_weights(path)
    source = f"the file {Path(path).name}"
    if any(name.startswith("decoder.") for name in state):
        return Filled(build_halves(halves), source, remaining=state)
    return Filled(_with_state(halves, state, path), source)


# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder)/"resnet18.pth"
    torch.save(theirs, file)
    filled = fill_from_file(Halves("unet", "resnet18"), file)
    print("weights from", filled.source)
    test_eq(filled.net.encoder.model.conv1.weight.detach(), ours.conv1.weight.detach())
    try: fill_from_file(Halves("unet", "resnet34"), file)
    except InputError as e: print(str(e).replace(folder, "…"))

# %% [markdown]
# With one input channel the first layer's weights are summed over the colours, which is exactly as if the grey image had been given three times:

# %%
test_close(ours.conv1.weight.detach(), theirs["conv1.weight"].sum(1, keepdim=True), 1e-6)


# %% [markdown]
# Published weights are never replaced by random numbers. Where there are none, the error says what to do.

# %%
#| export
def fill_from_published(halves: Halves) -> Filled:
    "The network with its encoder's published weights; `InputError` if they are nowhere in reach."
    published = published_weights(halves.encoder, halves.model)
    try: net = build_halves(halves, pretrained=True, state=published.state)
    except OSError as e:
        repo = find_encoder(halves.encoder, halves.model)[1]
        raise no_weights(halves.model, halves.encoder, repo) from e
    return Filled(net, published.source)


# %%
constants.HF_HUB_OFFLINE = True  # as on Kaggle with the internet switched off
print("from", fill_from_published(Halves("unet", "tf_efficientnet_lite0")).source)


# %%
#| export
def fill(halves: Halves, pretrained: bool, weights: str | Path | None) -> Filled:
    "The network with weights out of a file, if one is given; else published ones, if `pretrained`; else random ones."
    if weights is not None: return fill_from_file(halves, weights)
    return fill_from_published(halves) if pretrained else Filled(build_halves(halves))


# %%
for encoder in ("resnet34", "tf_efficientnet_lite1"):
    try: fill(Halves("unet", encoder), True, None)
    except InputError as e: print(e)


# %% [markdown]
# ## Features in, logits out
#
# The contract of [base](10_base.ipynb) wants the features between encoder and decoder, because methods perturb them there. A convolutional encoder gives a pyramid. Its decoder expects the image itself and some empty maps as well.

# %%
#| export
def pyramid_features(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    "Maps `[B, C, h, w]`, the finest first, out of what an encoder gives: not the image, no empty placeholders."
    return [f for f in outputs[1:] if f.shape[1]]


# %%
with torch.no_grad(): features = pyramid_features(resnet.encoder(torch.rand(1, 1, 64, 96)))
print(*(tuple(f.shape[1:]) for f in features))


# %%
#| export
def decode_pyramid(decoder: nn.Module, features: list[torch.Tensor]) -> torch.Tensor:
    "The decoder's map `[B, C, h, w]`, from the maps of `pyramid_features`."
    batch, _, h, w = features[0].shape
    halvings = reversed(range(1, 7 - len(features)))
    placeholders = [features[0].new_empty(batch, 0, 2**k*h, 2**k*w) for k in halvings]
    return decoder([*placeholders, *features])


# %%
with torch.no_grad(): decoded = decode_pyramid(resnet.decoder, features)
print("→", tuple(decoded.shape[1:]))


# %% [markdown]
# A plain ViT gives tokens of one size from several depths. DPT reads them into maps, resizes these to a pyramid, and fuses it from the coarsest on.

# %%
#| export
def dpt_features(decoder: nn.Module, outputs: tuple[list, list]) -> list[torch.Tensor]:
    "Maps `[B, C, h, w]` of one size, the shallowest first, out of a ViT's tokens and prefix tokens."
    readers = decoder.projection_blocks
    return [read(tokens, prefix) for read, tokens, prefix in zip(readers, *outputs)]


def decode_dpt(decoder: nn.Module, features: list[torch.Tensor]) -> torch.Tensor:
    "The decoder's map `[B, C, h, w]`, from the maps of `dpt_features`."
    maps = [resize(f) for resize, f in zip(decoder.reassemble_blocks, features)]
    fused = None
    for fuse, level in zip(decoder.fusion_blocks, reversed(maps)):
        fused = fuse(level, fused)
    return fused


# %%
with torch.no_grad():
    features = dpt_features(dpt.decoder, dpt.encoder(torch.rand(1, 1, 64, 96)))
    decoded = decode_dpt(dpt.decoder, features)
print(*(tuple(f.shape[1:]) for f in features), "→", tuple(decoded.shape[1:]))


# %% [markdown]
# ## What can be chosen
#
# The sections below explain these options one by one.

# %%
#| export
@dataclass(frozen=True)
class EncoderOptions:
    "What can be chosen of a network with a pretrained encoder, beside its two halves and its weights."
    frozen: bool = False  # the encoder does not learn
    frozen_levels: int = 0  # its first levels do not learn, from the finest on
    norm: str = "batch"  # of the decoder: "batch", or "group" where batches are small
    width: int = 0  # of the decoder at full resolution; 0: the library's, 16
    light: bool = False  # a thinner U-Net decoder
    half: bool = False  # a U-Net decoder that stops at half the resolution
    statistics: str = "encoder"  # of grey values: the encoder's, or ImageNet's

    @property
    def form(self) -> tuple[int, bool, bool]:
        "The form of the decoder: width, light, half."
        return self.width, self.light, self.half

    def __post_init__(self):
        if self.norm not in NORMS: raise did_you_mean("norm", self.norm, NORMS)
        if self.statistics not in STATISTICS:
            raise did_you_mean("statistics", self.statistics, STATISTICS)


# %%
try: EncoderOptions(norm="layer")
except InputError as e: print(e)


# %% [markdown]
# ## Levels that need not learn
#
# Edges and blobs are the same in photographs and in CT. The finest levels of an encoder find them, and these levels are the most expensive, since they work on the largest maps. `frozen_levels=2` leaves the levels down to a quarter of the resolution as they were published. Their gradients are not computed, which saves time.

# %%
#| export
def frozen_parts(encoder: nn.Module, levels: int, model: str) -> list[nn.Module]:
    "The modules of timm's encoder that make its first `levels` maps, in order; `InputError` for an encoder that is not timm's."
    if not levels: return []
    features = getattr(encoder, "model", None)
    if not hasattr(features, "feature_info"):
        raise InputError(f"{model}: the levels of this encoder cannot be told apart; leave frozen_levels out")
    names = features.feature_info.module_name()
    last = names[min(levels, len(names)) - 1].replace("_", ".")  # timm writes the same name both ways
    parts = []
    for name, module in features.named_modules():
        place = name.replace("_", ".")
        contains_last = not name or last.startswith(f"{place}.")
        if not contains_last: parts.append(module)
        if place == last: return parts
    raise InputError(f"{model}: no part {last} in this encoder; leave frozen_levels out")


# %%
for name in ("resnet18", "tf_efficientnet_lite0"):
    encoder = build_halves(Halves("unet", name)).encoder
    counts = [
        len({p for part in frozen_parts(encoder, n, name) for p in part.parameters()}) for n in range(6)
    ]
    print(name, counts, "tensors")


# %% [markdown]
# ## Small batches
#
# A decoder with batch normalisation suffers where batches are small; group normalisation looks at one image at a time.

# %%
#| export
def group_norm(module: nn.Module) -> None:
    "Replace batch by group normalisation inside `module`, with eight channels a group if possible."
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            group_norm(child)
            continue
        channels = child.num_features
        groups = max(channels//8, 1) if channels % 8 == 0 else 1
        setattr(module, name, nn.GroupNorm(groups, channels))


# %%
layers = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16))
group_norm(layers)
print(layers[1])


# %%
#| export
def adapt(
    net: nn.Module,
    options: EncoderOptions,
    model: str, # its name, for messages
) -> list[nn.Module]: # the parts of the encoder that do not learn
    "Give the library's network the norms that were chosen, and freeze what is not to learn."
    if options.norm == "group":
        group_norm(net.decoder)
        group_norm(net.segmentation_head)
    whole = options.frozen
    parts = [net.encoder] if whole else frozen_parts(net.encoder, options.frozen_levels, model)
    for part in parts: part.requires_grad_(False)
    return parts


# %%
adapted = build_halves(Halves("unet", "resnet18", 1, 7))
adapt(adapted, EncoderOptions(norm="group", frozen=True), "unet:resnet18")
print(f"{count_parameters(adapted, trainable=True):,} of {count_parameters(adapted):,} parameters learn")

# %% [markdown]
# ## Grey values
#
# Every encoder was trained on photographs that were normalised, each in its own way. So the network normalises a grey image in 0…1 itself, with the encoder's mean and deviation, averaged over the colours.

# %%
#| export
IMAGENET = .449, .226  # mean and deviation over the colours

def grey_statistics(known_as: str) -> tuple[float, float]: # as segmentation-models-pytorch calls the encoder
    "Mean and deviation that an encoder's photographs were normalised with, over the colours; ImageNet's if it says none."
    native = not known_as.startswith("tu-")
    config = None if native else import_timm().get_pretrained_cfg(known_as[3:])
    if config is None: return IMAGENET
    mean, deviation = (round(sum(colours)/len(colours), 4) for colours in (config.mean, config.std))
    return mean, deviation


# %%
for name in ("tu-resnet18", "tu-tf_efficientnet_lite0", "tu-vit_tiny_patch16_224", "mit_b0"):
    print(name, *grey_statistics(name))


# %% [markdown]
# ## The network

# %%
#| export
class LibraryNet(EncoderDecoder):
    "The contract of a network, kept with an `encoder`, a `decoder` and `out` of segmentation-models-pytorch."
    stride = 32
    mean, deviation = IMAGENET
    kind = "unet"  # one of `DECODERS`
    frozen: list[nn.Module]  # parts of the encoder that do not learn
    encoder: nn.Module
    decoder: nn.Module
    out: nn.Module

    @property
    def head(self) -> nn.Conv2d:
        "The last convolution."
        return [m for m in self.out.modules() if isinstance(m, nn.Conv2d)][-1]

    def train(self, mode: bool = True) -> "LibraryNet":
        "As in PyTorch; the batch statistics of what is frozen stay as they are."
        super().train(mode)
        for part in getattr(self, "frozen", []): part.eval()
        return self

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        "Feature maps `[B, channels[k], h, w]` of images f32 `[B, in_chans, H, W]` in 0…1."
        outputs = self.encoder((pad_to(x, self.stride) - self.mean)/self.deviation)
        return dpt_features(self.decoder, outputs) if self.kind == "dpt" else pyramid_features(outputs)

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        "Logits `[B, out_chans, *size]` from the features of `encode`."
        decode = decode_dpt if self.kind == "dpt" else decode_pyramid
        return crop_to(self.out(decode(self.decoder, features)), size)


# %%
plain = LibraryNet()
plain.encoder, plain.decoder, plain.out = resnet.encoder, resnet.decoder, resnet.segmentation_head
with torch.no_grad(): print(tuple(plain.eval()(torch.rand(1, 1, 61, 47)).shape))


# %%
#| export
class EncoderNet(LibraryNet):
    """A decoder of segmentation-models-pytorch over a pretrained encoder. Needs `ctseg[zoo]`.

    `weights_from` says in words where the encoder's weights were found; "" means random ones.
    """
    Options = EncoderOptions

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 55,
        decoder: str = "unet", # one of `DECODERS`; dpt is for plain ViTs
        encoder: str = "resnet34", # timm's name
        pretrained: bool = True, # take published weights; or fail
        weights: str | Path | None = None, # a file instead: of the encoder, or of this whole model
        **options, # see `EncoderOptions`
    ):
        super().__init__()
        chosen = EncoderOptions(**options)
        halves = Halves(decoder, encoder, in_chans, out_chans, *chosen.form)
        check_counts(halves.model, in_chans=in_chans, out_chans=out_chans)
        halves.check()
        filled = fill(halves, pretrained, weights)
        self.name, self.kind, self.weights_from = halves.model, decoder, filled.source
        if chosen.statistics == "encoder":
            self.mean, self.deviation = grey_statistics(halves.known_as)
        net = filled.net
        self.frozen = adapt(net, chosen, halves.model)
        self.encoder, self.decoder, self.out = net.encoder, net.decoder, net.segmentation_head
        levels = net.encoder.out_channels
        if decoder != "dpt": levels = levels[1:]  # without the image itself
        self.channels = tuple(c for c in levels if c)
        if filled.remaining is not None: load_weights(self, filled.remaining)


# %%
x = torch.rand(2, 1, 61, 47)
for name in ("unet:resnet18", "segformer:mit_b0", "dpt:vit_tiny_patch16_224"):
    torch.manual_seed(0)
    model = EncoderNet(1, 7, *name.split(":"), pretrained=False).eval()
    with torch.no_grad(): features, logits = model.encode(x), model(x)
    print(f"{name}: features {[tuple(f.shape[1:]) for f in features]}, logits {tuple(logits.shape)}")
    test_eq(logits.shape, (2, 7, 61, 47))
    test_eq(tuple(f.shape[1] for f in features), model.channels)

# %% [markdown]
# The file of a whole model works as well as that of an encoder:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder)/"whole.pth"
    model = EncoderNet(1, 7, "unet", "resnet18", pretrained=False)
    torch.save(model.state_dict(), file)
    again = EncoderNet(1, 7, "unet", "resnet18", weights=file)
    assert torch.equal(again.head.weight, model.head.weight)
    print("weights from", again.weights_from)


# %% [markdown]
# ## Two speeds
#
# Pretrained weights are worth keeping, so the encoder usually learns more slowly than the fresh decoder: by a factor of 3 for a ResNet and of 10 to 40 for a ViT.

# %%
#| export
def param_groups(
    model: nn.Module,
    lr: float, # of everything else
    encoder_lr: float | None = None, # of `model.encoder`; default: the same
) -> list[dict]: # for an optimiser
    "Groups of the parameters that learn, with the encoder's learning rate apart."
    learn = [p for p in model.parameters() if p.requires_grad]
    if encoder_lr is None or encoder_lr == lr:
        return [dict(params=learn, lr=lr)]
    if not isinstance(model, EncoderNet):
        kind = type(model).__name__
        remedy = "leave encoder_lr out"
        raise InputError(f"{kind} has no pretrained encoder to give a learning rate of its own; {remedy}")
    in_encoder = {id(p) for p in model.encoder.parameters()}
    fast = [p for p in learn if id(p) not in in_encoder]
    slow = [p for p in learn if id(p) in in_encoder]
    groups = [dict(params=fast, lr=lr), dict(params=slow, lr=encoder_lr)]
    return [g for g in groups if g["params"]]


# %%
groups = param_groups(model, 3e-4, 1e-4)
print([(g["lr"], sum(p.numel() for p in g["params"])) for g in groups])
test_eq(sum(len(g["params"]) for g in groups), len(list(model.parameters())))
frozen = EncoderNet(1, 7, "unet", "resnet18", pretrained=False, frozen=True, norm="group").train()
test_eq(len(param_groups(frozen, 3e-4, 1e-4)), 1)
assert not frozen.encoder.training and not any(
    isinstance(m, nn.BatchNorm2d) for m in frozen.decoder.modules()
)

# %% [markdown]
# ## Thirty steps
#
# Can such networks learn four slices by heart? Here they start from random weights, because we only test whether the parts work together.

# %%
images, masks = toy_slices()
curves = {}
for name, lr in (("unet:resnet18", .01), ("segformer:mit_b0", .003)):
    torch.manual_seed(0)
    model = EncoderNet(1, 4, *name.split(":"), pretrained=False)
    curves[name], dice = overfit(model, images, masks, lr=lr)
    print(name, "Dice: left {:.2f}, right {:.2f}, bright {:.2f}".format(*dice))

# %%
#| fig-alt: "Falling loss against the step for two networks of the zoo"
fig, ax = plt.subplots(figsize=(4.5, 2.6), layout="constrained")
for name, losses in curves.items(): ax.plot(losses, label=name)
ax.set(title="Four slices learnt by heart", xlabel="step", ylabel="loss")
ax.legend()
plt.show()

# %% [markdown]
# Every parameter of a ViT with DPT takes part, too (timm's last norm and classifier, which nothing here uses, are gone). The gradient of its keys' bias is always zero, because this bias shifts all
# attention scores of a query alike, and the softmax does not change.

# %%
model = EncoderNet(1, 4, "dpt", "vit_tiny_patch16_224", pretrained=False)
model(images).square().mean().backward()
test_eq([n for n, p in model.named_parameters() if p.grad is None], [])

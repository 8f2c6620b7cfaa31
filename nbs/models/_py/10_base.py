# %% [markdown]
# # What a model is
#
# > An encoder, a decoder, any image size; and the small things every architecture shares.
#
# - skip_showdoc: true

# %%
#| default_exp models.base

# %%
#| export
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ctseg.core.arguments import agrees
from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_special, refuse_unread
from ctseg.core.filetypes import content_of
from ctseg.models.sealed import check_seal
from ctseg.data.batches import class_in_mask

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from fastcore.test import test_close, test_eq
from safetensors.torch import save_file
from torch import nn

from ctseg.core.errors import InputError
from ctseg.core.toys import toy_slices


# %% [markdown]
# `ctseg` compares very different networks: convolutional, transformer, pretrained, deeply supervised. The training methods should not
# notice the difference. So every network offers the same three calls. To add a network of your own you write the first two:
#
# | call | gives |
# |---|---|
# | `encode(x)` | a list of feature maps, from high to low resolution |
# | `decode(features, size)` | logits `[B, out_chans, *size]` |
# | `forward(x)` | `decode(encode(x), size of x)` |
#
# Why the split? Two things act *between* the halves: UniMatch drops channels of the features, and a presence head looks at the deepest of
# them. A network that is one closed `forward` allows neither.

# %% [markdown]
# ## Any height, any width
#
# A network that halves the image four times needs sides divisible by 16. But an image of 61x47 is not a mistake, so we add black rows and
# columns (air, in CT) below and on the right, and crop the logits back. At least two cells are left at the lowest
# resolution, because batch normalisation cannot normalise a single value.

# %%
#| export
def pad_to(
    x: torch.Tensor, # [B, C, H, W]
    stride: int | tuple[int, int], # the sides become multiples of it, and at least twice as long as it
) -> torch.Tensor: # [B, C, H', W']
    "Pad `[B, C, H, W]` with zeros, right and below, so that a network that divides by `stride` can take it."
    strides = (stride, stride) if isinstance(stride, int) else stride
    missing_h, missing_w = (
        max(2*step, -(-side//step)*step) - side  # rounded up
        for side, step in zip(x.shape[-2:], strides)
    )
    if not missing_h and not missing_w: return x
    return F.pad(x, (0, missing_w, 0, missing_h))


# %%
print(tuple(pad_to(torch.zeros(2, 1, 61, 47), 16).shape))


# %%
#| export
def crop_to(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    "Undo `pad_to`: the upper left `size` = (H, W) of `x` [..., H', W']."
    return x[..., :size[0], :size[1]]


# %%
x = torch.rand(2, 1, 61, 47)
padded = pad_to(x, 16)
print(tuple(x.shape), "->", tuple(padded.shape), "->", tuple(crop_to(padded, (61, 47)).shape))
test_eq(crop_to(padded, (61, 47)), x)
test_eq(pad_to(torch.zeros(1, 1, 5, 32), 16).shape, (1, 1, 32, 32))


# %% [markdown]
# ## The contract as a class
#
# A subclass sets `stride` (what to pad to), `channels` (of each feature map) and `head` (the last convolution, whose bias a loss may want to set),
# and writes the two halves.
#
# With `presence=True` the call returns a second output, the logits of a [presence head](20_presence.ipynb). `between` lets a method act on the features. Both are
# arguments of `forward`, not separate methods, because with several GPUs only `forward` passes through the wrapper that averages gradients.

# %%
#| export
class EncoderDecoder(nn.Module):
    "Base of all networks: images `[B, in_chans, H, W]` of any size in, logits `[B, out_chans, H, W]` out."
    stride: int | tuple[int, int] = 1  # sides are padded to a multiple of this
    channels: tuple[int, ...] = ()  # of the features that `encode` returns
    head: nn.Module  # the last convolution
    memory_format = torch.channels_last  # of the weights; convolutions like this one

    def __init__(self):
        super().__init__()
        self.presence: nn.Module | None = None  # set by `with_presence`

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        "Feature maps `[B, channels[k], h, w]`, from high to low resolution, of images `[B, in_chans, H, W]`."
        raise NotImplementedError

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        "Logits `[B, out_chans, *size]` from the features of `encode`; `size` = (H, W) of the images."
        raise NotImplementedError

    def forward(
        self,
        x: torch.Tensor, # f32 [B, in_chans, H, W]
        presence: bool = False, # also return the presence logits [B, C]
        between: Callable[[list], list] | None = None, # acts on the features
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        "Logits `[B, out_chans, H, W]`; with `presence` also the logits `[B, C]` of the presence head."
        features = self.encode(x)
        if between: features = between(features)
        logits = self.decode(features, x.shape[-2:])
        return (logits, self.presence(features)) if presence else logits


# %% [markdown]
# Here is the smallest network that keeps the contract:

# %%
class Tiny(EncoderDecoder):
    stride, channels = 2, (4, 8)

    def __init__(self, in_chans, out_chans):
        super().__init__()
        self.fine = nn.Conv2d(in_chans, 4, 3, padding=1)
        self.coarse = nn.Conv2d(4, 8, 3, padding=1)
        self.head = nn.Conv2d(12, out_chans, 1)

    def encode(self, x):
        fine = self.fine(pad_to(x, self.stride)).relu()
        return [fine, self.coarse(F.max_pool2d(fine, 2)).relu()]

    def decode(self, features, size):
        fine, coarse = features
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        return crop_to(self.head(both), size)

torch.manual_seed(0)
tiny = Tiny(1, 7)
print(
    "image",
    tuple(x.shape),
    "features",
    [tuple(f.shape) for f in tiny.encode(x)],
    "logits",
    tuple(tiny(x).shape),
)
assert torch.equal(tiny(x), tiny.decode(tiny.encode(x), x.shape[-2:]))


# %% [markdown]
# ## Where a network lies in memory
#
# The order of the numbers in memory decides how fast a processor gets at them. Convolutions are fastest with the channels of a pixel side by side. A network that normalises
# each image for itself would be rearranged at every such layer, so it says `memory_format = torch.contiguous_format`. The weights carry the layout, and the maps follow them.

# %%
#| export
def place(
    model: nn.Module,
    device: str | torch.device,
    layout: bool = True, # False: the weights keep the layout that they have
) -> nn.Module: # the same model
    "Move a network to a device, with its weights in the layout that suits it if `layout`."
    suited = getattr(model, "memory_format", torch.channels_last)
    return model.to(device, memory_format=suited if layout else torch.preserve_format)


# %%
conv = place(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)), "cpu")
conv(torch.rand(2, 1, 9, 9)).is_contiguous(memory_format=torch.channels_last)


# %% [markdown]
# ## Depthwise convolutions in bfloat16
#
# Light encoders have convolutions that look at each channel by itself. On a CPU the backward pass of these in bfloat16 has no fast code in PyTorch: it takes half of a training step. In float32 it is fast, so they are computed in float32 while a network trains under autocast, and hand on what autocast would. A training step of the U-Net on EfficientNet-Lite0 then takes 0.6 to 0.7 of the time (96 pixels, an Intel Xeon with AMX). Prediction keeps to bfloat16.

# %%
#| export
def _forward_depthwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    "What a depthwise convolution makes of `x`; in float32 where a CPU trains under autocast."
    forward = type(conv).forward
    trains = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    if not trains or x.device.type != "cpu":
        return forward(conv, x)
    with torch.autocast("cpu", enabled=False):
        found = forward(conv, x.float())
    return found.to(torch.get_autocast_dtype("cpu"))

def depthwise_in_float32(model: nn.Module) -> nn.Module: # the same model
    "Have the depthwise convolutions of a network computed in float32 while it trains on a CPU under autocast."
    for module in model.modules():
        if not isinstance(module, nn.Conv2d): continue
        if module.groups == module.in_channels > 1:
            module.forward = partial(_forward_depthwise, module)  # a copy of the network copies this too
    return model


# %%
depthwise = depthwise_in_float32(nn.Conv2d(4, 4, 3, groups=4))
pixels = torch.rand(2, 4, 8, 8)
with torch.autocast("cpu", torch.bfloat16):
    trained = depthwise(pixels)
    with torch.inference_mode(): predicted = depthwise(pixels)
print(trained.dtype, predicted.dtype)
exact = depthwise(pixels)
assert (trained - exact).abs().max() <= (predicted - exact).abs().max()

# %% [markdown]
# ## Counting
#
# We refuse impossible sizes before they reach PyTorch.

# %%
#| export
MOST_COUNT = 1 << 20  # channels, or pixels along a side

def check_counts(what: str, **counts: int) -> None:
    "Raise an `InputError` about `what` unless every one of `counts` is a whole number of at least 1, and no absurd one."
    for name, value in counts.items():
        whole = agrees(value, int)
        if not whole or value < 1:
            raise InputError(f"{what}: {name} is {value!r}, expected a whole number of at least 1")
        if value > MOST_COUNT:
            raise InputError(f"{what}: {name} is {value}, expected at most {MOST_COUNT}")


# %%
try: check_counts("attunet", in_chans=1, width=1.5)
except InputError as e: print(e)


# %%
#| export
def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    "How many numbers the model holds, or learns with `trainable=True`."
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


# %% [markdown]
# A 1×1 convolution to 55 channels has 55 weights and 55 biases.

# %%
print(count_parameters(nn.Conv2d(1, 55, 1)), "parameters")
test_eq(count_parameters(nn.Conv2d(1, 55, 1)), 110)

# %% [markdown]
# ## Weights from a file
#
# A Kaggle notebook often runs without the internet, so weights come from a file. We read pickled files with `weights_only=True`, because a weights file must not run code.

# %%
#| export
WRAPPERS = ("state_dict", "model", "module", "model_ema")  # under which other programs keep a state dict


def _found(path: Path, error: Exception) -> str:
    "What a file is in place of weights, if its first bytes tell; else the kind of the error."
    content = content_of(path)
    return content if content not in ("", "an archive (zip)") else type(error).__name__  # torch writes zip

def _open_file(path: Path):
    "What a weights file holds; an `InputError` if it is damaged or of another kind."
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            check_seal(path)
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of what is told in one line below
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as e:
        expected = "expected a state dict (or a .safetensors file)"
        found = _found(path, e)
        raise InputError(f"{path}: holds more than tensors, or is damaged ({found}); {expected}") from None
    except Exception as e:  # each format has its own way to say "damaged"
        refuse_unread(path, e)
        problem = "cannot be read as weights, the file is damaged or of another kind"
        raise InputError(f"{path}: {problem} ({_found(path, e)})") from None


# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder)/"damaged.pth"
    file.write_bytes(b"not a model")
    try: _open_file(file)
    except InputError as e: print(str(e).replace(folder, "…"))


# %%
#| export
def _is_state(value: dict) -> bool:
    "Does a dictionary hold tensors by their names, and nothing else?"
    named = all(isinstance(name, str) for name in value)
    return bool(value) and named and all(map(torch.is_tensor, value.values()))

def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict, tensors by name, on the CPU: .safetensors, or anything `torch.save` wrote.

    Wrappers such as {'state_dict': …} or {'model': …} are opened. A damaged file is an `InputError`.
    """
    path = Path(path)
    refuse_special(path)
    if not path.is_file(): raise InputError(f"{path}: no such weights file")
    state, depth = _open_file(path), 0
    while isinstance(state, dict) and not _is_state(state):
        wrapped = [state[k] for k in WRAPPERS if isinstance(state.get(k), dict)]
        depth += 1
        if not wrapped or depth > len(WRAPPERS):  # a dictionary may hold itself
            entries = ", ".join(map(str, list(state)[:5]))
            raise InputError(f"{path}: no state dict in it; its entries are {entries}")
        state = wrapped[0]
    if isinstance(state, dict): return state
    raise InputError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")


# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder)/"tiny.pth"
    torch.save({"epoch": 3, "state_dict": tiny.state_dict()}, file)
    print({name: tuple(tensor.shape) for name, tensor in read_weights(file).items()})
    assert all(torch.equal(tensor, tiny.state_dict()[name]) for name, tensor in read_weights(file).items())
    file.write_bytes(file.read_bytes()[:100])
    try: read_weights(file)
    except InputError as e: print(str(e).replace(folder, "…"))


# %% [markdown]
# The most common mistake is the file of another network. PyTorch then prints some hundred lines. We name only the first few tensors that differ, which is enough to see the cause.

# %%
#| export
def shape_differences(shapes: dict[str, torch.Size], state: dict[str, torch.Tensor]) -> list[str]:
    "In words, which tensors of `state` have another shape than the model's `shapes`, and which are missing."
    present = {name: state[name].shape for name in shapes if name in state}
    unlike = [
        f"{name} is {tuple(shape)}, the model has {tuple(shapes[name])}"
        for name, shape in present.items() if shape != shapes[name]
    ]
    return unlike + [f"{name} is missing" for name in shapes if name not in state]


# %%
print(shape_differences({"weight": (3, 3), "bias": (3,)}, {"weight": torch.zeros(3, 5)}))


# %%
#| export
def first_few(items: list[str], show: int = 3) -> str:
    "The first `show` items, and how many more there are."
    more = f" (and {len(items) - show} more)" if len(items) > show else ""
    return "; ".join(items[:show]) + more


# %%
print(first_few(["one", "two", "three", "four", "five"]))


# %%
#| export
def load_weights(
    model: nn.Module, # changed in place
    weights: str | Path | dict, # a file, or a state dict
) -> nn.Module: # the same model
    "Load all weights or none. If names or shapes differ, an `InputError` names the first tensors that do."
    given = isinstance(weights, dict)
    state = weights if given else read_weights(weights)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = shape_differences(shapes, state)
    wrong += [f"{name} is not in the model" for name in state if name not in shapes]
    if wrong:
        source = "weights" if given else str(weights)
        expected = f"of another architecture or setting than {type(model).__name__}"
        raise InputError(f"{source}: {expected}: {first_few(wrong)}")
    model.load_state_dict(state)
    return model


# %%
def refusal(model, weights):
    try: load_weights(model, weights)
    except InputError as e: print(e)

state = tiny.state_dict()
assert torch.equal(load_weights(Tiny(1, 7), state).fine.weight, tiny.fine.weight)
refusal(Tiny(3, 5), state)  # another number of channels
refusal(nn.Linear(2, 2), state)  # another network

# %% [markdown]
# Saved and loaded, the weights are the same:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder)/"tiny.safetensors"
    save_file(state, file)
    assert torch.equal(load_weights(Tiny(1, 7), file).head.bias, tiny.head.bias)


# %% [markdown]
# ## Logits at several sizes
#
# In training, a deeply supervised network (nnU-Net) returns a *list*: logits at full size, half, quarter and so on. Each is compared with the truth at its own
# size, so the truth must shrink. The mean of two labels is not a label, so we keep every $k$-th pixel: those that the network's halvings keep.

# %%
#| export
def _kept(length: int, coarse: int, device: torch.device) -> torch.Tensor:
    "Positions int64 [coarse] of those of `length` rows that a network keeps when it halves again and again."
    step = 2**math.ceil(math.log2(length/coarse))
    return (torch.arange(coarse, device=device)*step).clamp(max=length - 1)


# %%
print(_kept(9, 3, "cpu").tolist())


# %%
#| export
def shrink_labels(labels: torch.Tensor | None, size: tuple[int, ...]) -> torch.Tensor | None:
    """Labels at a coarser size, without mixing them: `[..., H, W]` or `[..., D, H, W]` -> `[..., *size]`.

    None, and labels of whole images, `[B, C]`, are returned unchanged.
    """
    if labels is None or labels.ndim == 2: return labels
    for axis, side in enumerate(size, labels.ndim - len(size)):
        labels = labels.index_select(axis, _kept(labels.shape[axis], side, labels.device))
    return labels


# %%
truth = torch.randint(0, 3, (2, 61, 47))
test_eq(shrink_labels(truth, (31, 24)), truth[:, ::2, ::2])
print(tuple(truth.shape), "->", tuple(shrink_labels(truth, (16, 12)).shape))


# %% [markdown]
# With `deep_supervised` the training loop need not know about sizes: it takes any loss, and one tensor or a list. The weights are those of nnU-Net, $1/2^i$ normalised to sum to one. nnU-Net gives the
# coarsest output no weight; here it keeps its few per cent, so that every parameter learns. A small structure may fall between the rows that are kept. It is then unknown at that size, not absent.

# %%
#| export
def deep_supervised(
    loss: Callable[..., torch.Tensor], # loss(logits, mask, known, weight) -> scalar
    logits: torch.Tensor | list[torch.Tensor], # full size, or a list from fine to coarse
    mask: torch.Tensor, # int64 [B, H, W], or [B, D, H, W]
    known: torch.Tensor | None, # bool [B, C], or [B, C, H, W], or [B, C, D, H, W]
    weight: torch.Tensor | None = None, # of the pixels, [B, 1, H, W], or [B, 1, D, H, W]
) -> torch.Tensor:
    "`loss` of logits at one size, or its mean over several sizes, each finer one twice as heavy as the next."
    if not isinstance(logits, list): return loss(logits, mask, known, weight)
    total = 0.
    scale = sum(2.**-i for i in range(len(logits)))
    for i, coarse in enumerate(logits):
        size = coarse.shape[2:]
        small = shrink_labels(mask, size)
        known_there = shrink_labels(known, size)
        if known is not None and known.ndim == 2:
            classes = known.shape[1]
            lost = class_in_mask(mask, classes) & ~class_in_mask(small, classes)
            known_there = known & ~lost
        share = 2.**-i/scale
        total = total + share*loss(coarse, small, known_there, shrink_labels(weight, size))
    return total


# %%
def cross_entropy(logits, mask, known, weight): return F.cross_entropy(logits, mask)

full, half = torch.randn(2, 3, 61, 47), torch.randn(2, 3, 31, 24)
one_size = deep_supervised(cross_entropy, full, truth, None)
two_sizes = deep_supervised(cross_entropy, [full, half], truth, None)
test_eq(one_size, F.cross_entropy(full, truth))
test_close(two_sizes, 2/3*one_size + 1/3*F.cross_entropy(half, truth[:, ::2, ::2]), 1e-6)
print(f"full size {one_size:.4f}, with half size {two_sizes:.4f}")


# %% [markdown]
# ## Can it learn at all?
#
# A network without a mistake learns four slices by heart. The page of each architecture tries it with `overfit`.

# %%
#| export
def _dice(probs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    "Dice [C] of each channel over all images, `[B, C, H, W]` both."
    overlap = (probs*target).sum((0, 2, 3))
    size = probs.sum((0, 2, 3)) + target.sum((0, 2, 3))
    return 2*overlap/size.clamp(min=1e-6)


def _one_hot(mask: torch.Tensor, channels: int) -> torch.Tensor:
    "f32 [B, channels, H, W] of labels int64 [B, H, W]."
    return F.one_hot(mask, channels).movedim(-1, 1).float()


# %% [markdown]
# The prediction has one of two pixels, so the Dice of class 1 is 2/3.

# %%
half_right = torch.tensor([[[0, 1], [0, 0]]])
test_eq(_dice(_one_hot(half_right, 2), _one_hot(torch.tensor([[[0, 1], [0, 1]]]), 2))[1], torch.tensor(2/3))


# %%
#| export
@torch.no_grad()
def settle_norms(model: nn.Module, images: torch.Tensor) -> None:
    "Let the running averages of batch normalisation catch up: they lag behind thirty quick steps."
    for _ in range(20): model(images)


# %%
norm = nn.BatchNorm2d(1)
settle_norms(norm, torch.full((1, 1, 2, 2), 5.))
print(f"running mean of an image of fives: {norm.running_mean.item():.2f}")


# %%
#| export
def overfit(
    model: EncoderDecoder, # changed in place
    images: torch.Tensor, # f32 [B, in_chans, H, W], a handful of slices
    masks: torch.Tensor, # int64 [B, H, W]
    steps: int = 30,
    lr: float = .01,
) -> tuple[list[float], torch.Tensor]:
    """Show the same slices again and again, with balanced cross-entropy plus twice the Dice loss.

    The loss of each step; then, in eval mode, the Dice [C] of each class but the background.
    """
    target = _one_hot(masks, int(masks.max()) + 1)
    rarity = target.mean((0, 2, 3))**-.7  # with so few steps, small classes need more weight
    weight = rarity*len(rarity)/rarity.sum()
    opt = torch.optim.AdamW(model.train().parameters(), lr=lr, betas=(.9, .95))
    cycle = torch.optim.lr_scheduler.OneCycleLR
    schedule = cycle(opt, lr, total_steps=steps, pct_start=.3, cycle_momentum=False)
    losses = []
    for _ in range(steps):
        out = model(images)
        logits = out[0] if isinstance(out, list) else out  # deep supervision: the finest
        dice_loss = 1 - _dice(logits.softmax(1), target).mean()
        loss = F.cross_entropy(logits, masks, weight) + 2*dice_loss
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), .5)
        opt.step()
        schedule.step()
        losses.append(loss.item())
    settle_norms(model, images)
    labels = model.eval()(images).argmax(1)
    return losses, _dice(_one_hot(labels, target.shape[1]), target)[1:]


# %% [markdown]
# The two organs at the sides look alike on purpose: only their place tells them apart, as with the left and the right kidney.
# `Tiny` sees a few pixels around each pixel, so it cannot tell them apart. The real networks must do better.

# %%
#| fig-alt: "Four slices with three organs each, and the falling loss of the smallest network"
images, masks = toy_slices()
torch.manual_seed(0)
losses, dice = overfit(Tiny(1, 4), images, masks, steps=60, lr=.1)
fig, axes = plt.subplots(1, 5, figsize=(11, 2.3), layout="constrained")
for ax, image, mask in zip(axes, images, masks):
    ax.imshow(image[0], cmap="gray")
    ax.imshow(torch.where(mask > 0, mask, torch.nan), alpha=.5, cmap="brg", vmin=1, vmax=3)
    ax.axis("off")
    ax.set_title("truth", fontsize=10)
axes[4].plot(losses)
axes[4].set(title="Tiny's loss", xlabel="step", ylabel="loss")
print("Dice of Tiny: left {:.2f}, right {:.2f}, bright {:.2f}".format(*dice))
assert dice.min() < .8

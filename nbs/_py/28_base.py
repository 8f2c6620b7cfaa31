# %% [markdown]
# # What a model is
#
# > An encoder, a decoder, any image size; and the small things every architecture shares.
#
# - skip_showdoc: true

# %%
#| default_exp models.base

# %% [markdown]
# `ctseg` compares very different networks: convolutional, transformer, pretrained, deeply supervised. The training methods should not
# notice. So every network is the same three calls, and the notebooks 30 to 37 only fill in the first two:
#
# | call | gives |
# |---|---|
# | `encode(x)` | a list of feature maps, from high to low resolution |
# | `decode(features, size)` | logits `[B, out_chans, *size]` |
# | `forward(x)` | `decode(encode(x), size of x)` |
#
# Why the split? Two things act *between* the halves: UniMatch drops channels of the features, and a presence head looks at the deepest of
# them. A network that is one closed `forward` allows neither.

# %%
#| export
import math, pickle, sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ctseg.anatomy import ClassMap
from ctseg.augment import shown
from ctseg.data import SliceSet
from ctseg.files import InputError

# %%
#| hide
import tempfile
import matplotlib.pyplot as plt
from safetensors.torch import save_file
from fastcore.test import test_eq, test_close


# %% [markdown]
# ## Any height, any width
#
# A network that halves the image four times wants sides divisible by 16. A 61x47 image is not a mistake, so it is not refused: black columns
# and rows (air, in CT) are added on the right and below, and the logits are cropped back. At least two cells are left at the lowest
# resolution, because batch normalisation cannot normalise a single value.

# %%
#| export
def pad_to(
    x: torch.Tensor, # [B,C,H,W]
    stride: int|tuple[int, int], # the sides become multiples of this (or of these), and at least twice as long
) -> torch.Tensor: # [B,C,H',W'], zeros on the right and below
    "Pad with zeros so that a network that divides the image by `stride` can take it."
    strides = (stride, stride) if isinstance(stride, int) else stride
    h, w = (max(2*s, -(-n//s)*s) - n for n, s in zip(x.shape[-2:], strides))
    return F.pad(x, (0, w, 0, h)) if h or w else x

def crop_to(x: torch.Tensor, size) -> torch.Tensor:
    "Undo `pad_to`: the upper left `size` = (H, W) of `x`."
    return x[..., :size[0], :size[1]]


# %%
x = torch.rand(2, 1, 61, 47)
print(tuple(x.shape), "->", tuple(pad_to(x, 16).shape), "->", tuple(crop_to(pad_to(x, 16), x.shape[-2:]).shape))
test_eq(crop_to(pad_to(x, 16), (61, 47)), x)
test_eq(pad_to(torch.zeros(1, 1, 5, 32), 16).shape, (1, 1, 32, 32))


# %% [markdown]
# ## The contract as a class
#
# A subclass sets `stride` (what to pad to), `channels` (of each feature map) and `head` (the last convolution, whose bias a loss may want to set),
# and writes the two halves.
#
# With `presence=True` the call returns a second output, the logits of the presence head below; `between` lets a method act on the features. Both are arguments of `forward`, not
# separate methods, because with several GPUs only `forward` passes through the wrapper that averages gradients.

# %%
#| export
class EncoderDecoder(nn.Module):
    "Base of all networks. `forward(x [B,in,H,W]) -> logits [B,out,H,W]` for any H and W, as `decode(encode(x), (H, W))`."
    stride = 1                    # sides are padded to a multiple of this
    channels: tuple[int, ...] = ()  # of the features that `encode` returns
    head: nn.Module               # the last convolution
    memory_format = torch.channels_last  # of the weights, where the recipe does not forbid it: what convolutions like; instance normalisation does not

    def __init__(self):
        super().__init__()
        self.presence = None      # set by `with_presence`

    def encode(self, x) -> list[torch.Tensor]: raise NotImplementedError
    def decode(self, features, size) -> torch.Tensor: raise NotImplementedError

    def forward(self,
        x: torch.Tensor, # f32 [B,in_chans,H,W]
        presence: bool = False, # also return the presence logits [B,C]
        between = None, # function of the list of features, called between encoder and decoder
    ):
        features = self.encode(x)
        if between: features = between(features)
        logits = self.decode(features, x.shape[-2:])
        return (logits, self.presence(features)) if presence else logits


# %% [markdown]
# The order of the numbers in memory decides how fast a processor or a tensor core gets at them. Convolutions want the channels of a pixel side by side; a network that normalises image by image would be rearranged at every such layer. The weights
# carry the layout, and the maps follow them.

# %%
#| export
def place(model: nn.Module, device, layout: bool = True) -> nn.Module:
    "Move a network to a device, with its weights in the layout that suits it if `layout`."
    return model.to(device, memory_format=getattr(model, "memory_format", torch.channels_last) if layout else torch.preserve_format)


# %%
conv = place(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)), "cpu")
conv(torch.rand(2, 1, 9, 9)).is_contiguous(memory_format=torch.channels_last)


# %% [markdown]
# The smallest network that keeps the contract shows all there is to it:

# %%
class Tiny(EncoderDecoder):
    stride, channels = 2, (4, 8)
    def __init__(self, in_chans, out_chans):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(in_chans, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(12, out_chans, 1)
    def encode(self, x):
        a = self.a(pad_to(x, self.stride)).relu()
        return [a, self.b(F.max_pool2d(a, 2)).relu()]
    def decode(self, features, size):
        a, b = features
        return crop_to(self.head(torch.cat([a, F.interpolate(b, scale_factor=2)], 1)), size)

torch.manual_seed(0)
tiny = Tiny(1, 7)
print("image", tuple(x.shape), "features", [tuple(f.shape) for f in tiny.encode(x)], "logits", tuple(tiny(x).shape))
assert torch.equal(tiny(x), tiny.decode(tiny.encode(x), x.shape[-2:]))


# %% [markdown]
# ## Is the organ in this slice at all?
#
# The challenge scores an organ that is drawn where it is absent with 0 for that slice, so it pays to ask first whether it is there.
# That question is about the whole image, and the deepest features see nearly all of it. The head pools them in two ways: the mean tells how much
# of something there is, the maximum that a small organ exists somewhere.

# %%
#| export
class PresenceHead(nn.Module):
    "Image-level logits [B,C] for 'is class c in this image?' from the deepest feature map."
    def __init__(self, channels: int, classes: int, dropout: float = .2):
        super().__init__()
        self.drop, self.linear = nn.Dropout(dropout), nn.Linear(2*channels, classes)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        deep = features[-1].flatten(2)
        return self.linear(self.drop(torch.cat([deep.mean(2), deep.amax(2)], 1)))

def with_presence(
    model: EncoderDecoder, # changed in place
    classes: int, # C, without background
    dropout: float = .2, # on the pooled features
) -> EncoderDecoder: # the same model, with a `presence` head
    "Give `model` a presence head. Plain calls stay as they were; `model(x, presence=True)` returns (logits, presence logits [B,C])."
    check_counts("presence head", classes=classes)
    model.presence = PresenceHead(model.channels[-1], classes, dropout).to(next(model.parameters()).device)
    return model

def check_counts(what: str, **counts):
    "Raise an `InputError` unless every one of `counts` is a whole number of at least 1."
    for k, v in counts.items():
        if not isinstance(v, int) or isinstance(v, bool) or v < 1:
            raise InputError(f"{what}: {k} is {v!r}, expected a whole number of at least 1")


# %% [markdown]
# In the loop the head learns from the *known* cells only; an unknown cell has no say here either:

# %%
torch.manual_seed(0)
logits, there = with_presence(tiny, 7)(x, presence=True)
known = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]]).bool()
truth = torch.zeros(2, 7); truth[0, 1] = truth[1, 4] = 1.
loss = F.binary_cross_entropy_with_logits(there, truth, reduction="none")[known].mean()
loss.backward()
print("logits", tuple(logits.shape), " presence", tuple(there.shape), f" loss {loss.item():.3f}")
test_eq(tiny.presence.linear.weight.grad[6].abs().sum().item(), 0.)  # class 6 is known nowhere: nothing learned
assert tiny.a.weight.grad.abs().sum() > 0                               # the encoder learns from it as well


# %% [markdown]
# ## Counting

# %%
#| export
def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    "How many numbers the model holds, or learns with `trainable=True`."
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


# %%
test_eq(count_parameters(nn.Conv2d(1, 55, 1)), 110)


# %% [markdown]
# ## Weights from a file
#
# Kaggle runs without a network, so weights often come from a file, and the commonest mistake is a file of another network. PyTorch then
# prints some hundred lines. Here the first few tensors that differ are enough to see which network it is. Pickled files are
# read with `weights_only=True`: a weights file has no business running code.

# %%
#| export
def read_weights(
    path, # .safetensors, or anything `torch.save` wrote
) -> dict[str, torch.Tensor]: # tensors by name, on the CPU
    "Read a state dict; wrappers such as {'state_dict': …} or {'model': …} are opened. A damaged file is an `InputError`."
    path = Path(path)
    if not path.is_file(): raise InputError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path}: holds more than tensors, or is damaged; expected a state dict (or a .safetensors file)") from None
    except Exception as e:  # each format has its own way to say "damaged"
        raise InputError(f"{path}: cannot be read as weights, the file is damaged or of another kind ({type(e).__name__})") from None
    while isinstance(state, dict) and not all(map(torch.is_tensor, state.values())):
        inner = next((state[k] for k in ("state_dict", "model", "module", "model_ema") if isinstance(state.get(k), dict)), None)
        if inner is None: raise InputError(f"{path}: no state dict in it; its entries are {', '.join(map(str, list(state)[:5]))}")
        state = inner
    if not isinstance(state, dict): raise InputError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    return state


# %%
#| export
def load_weights(
    model: nn.Module, # changed in place
    weights, # a path, or a state dict
    show: int = 3, # how many differences an error names
) -> nn.Module: # the same model
    "Load all weights or none. If names or shapes differ, an `InputError` names the first tensors that do."
    where = "weights" if isinstance(weights, dict) else str(weights)
    state = weights if isinstance(weights, dict) else read_weights(weights)
    own = model.state_dict()
    wrong = [f"{k} is {tuple(state[k].shape)}, the model has {tuple(v.shape)}" for k, v in own.items() if k in state and state[k].shape != v.shape]
    wrong += [f"{k} is missing" for k in own if k not in state] + [f"{k} is not in the model" for k in state if k not in own]
    if wrong:
        more = f" (and {len(wrong) - show} more)" if len(wrong) > show else ""
        raise InputError(f"{where}: of another architecture or setting than {type(model).__name__}: {'; '.join(wrong[:show])}{more}")
    model.load_state_dict(state)
    return model


# %%
with tempfile.TemporaryDirectory() as d:
    p, q = Path(d)/"tiny.safetensors", Path(d)/"tiny.pth"
    state = Tiny(1, 7).state_dict()
    save_file(state, p); torch.save({"epoch": 3, "state_dict": state}, q)
    for path in p, q: assert torch.equal(load_weights(Tiny(1, 7), path).a.weight, state["a.weight"])
    def say(model, path):
        try: load_weights(model, path)
        except InputError as e: print(str(e).replace(d, "…"))
    say(Tiny(3, 5), p)                         # another number of channels
    say(nn.Linear(2, 2), p)                     # another network
    q.write_bytes(p.read_bytes()[:100]); say(Tiny(1, 7), q)   # cut off
    p.write_bytes(p.read_bytes()[:100]); say(Tiny(1, 7), p)


# %% [markdown]
# ## Logits at several sizes
#
# A deeply supervised network (nnU-Net) answers in training with a *list*: logits at full size, half, quarter and so on, and each is held against the truth at its own
# size. This helper lets the loop forget about it: any loss, one tensor or a list. The weights are those of nnU-Net, $1/2^i$ normalised to sum to one; nnU-Net gives the coarsest output
# none, here it keeps its few per cent so that every parameter learns.

# %%
#| export
def deep_supervised(
    loss, # loss(logits, mask, known, weight) -> scalar
    logits: torch.Tensor|list[torch.Tensor], # full size, or a list from fine to coarse
    mask: torch.Tensor, known: torch.Tensor, weight: torch.Tensor|None = None, # at full size; `known` [B,C] or [B,C,H,W]
) -> torch.Tensor:
    "`loss` of logits at one size, or its mean over several sizes, each finer one twice as heavy as the next."
    if not isinstance(logits, list): return loss(logits, mask, known, weight)
    def near(t, size):  # every k-th pixel: labels stay labels
        if t is None or t.ndim == 2: return t
        y, x = (torch.arange(n, device=t.device)*2**math.ceil(math.log2(m/n)) for n, m in zip(size, t.shape[-2:]))  # networks halve
        return t[..., y.clamp(max=t.shape[-2] - 1)[:, None], x.clamp(max=t.shape[-1] - 1)]
    total, scale = 0., sum(2.**-i for i in range(len(logits)))
    for i, z in enumerate(logits):
        small, k = (near(t, z.shape[-2:]) for t in (mask, known))
        if k is not None and k.ndim == 2: k = k & (shown(small, k.shape[1]) | ~shown(mask, k.shape[1]))
        total = total + 2.**-i/scale*loss(z, small, k, near(weight, z.shape[-2:]))
    return total


# %%
ce = lambda z, mask, known, weight: F.cross_entropy(z, mask)
truth = torch.randint(0, 3, (2, 61, 47))
full, half = torch.randn(2, 3, 61, 47), torch.randn(2, 3, 31, 24)
test_eq(deep_supervised(ce, full, truth, None), ce(full, truth, None, None))
test_close(deep_supervised(ce, [full, half], truth, None), 2/3*ce(full, truth, None, None) + 1/3*ce(half, truth[:, ::2, ::2], None, None), 1e-6)


# %% [markdown]
# ## From a network to probabilities
#
# Whoever asks a network, the trainer after an epoch, a teacher that labels slices, the prediction in the end, must ask in the same way: where there is a presence head, it has its say.

# %%
#| export
def class_probabilities(
    model: nn.Module,
    loss, # knows how logits become probabilities (`ctseg.losses`)
    x: torch.Tensor, # f32 [B,1,H,W] in 0..1
    temperature: float = 1., # by which the logits are divided
    presence: bool = True, # False: leave a presence head unasked
) -> torch.Tensor: # [B,C,H,W]
    "The foreground probabilities of a network in evaluation; with a presence head, times the probability that the class is on the image at all."
    if not presence or getattr(model, "presence", None) is None: return loss.probabilities(model(x).float()/temperature)
    logits, there = model(x, presence=True)
    return loss.probabilities(logits.float()/temperature)*there.float().sigmoid()[..., None, None]


# %%
from types import SimpleNamespace
net = with_presence(Tiny(1, 3), 3).eval()
with torch.no_grad():
    net.presence.linear.weight.zero_(); net.presence.linear.bias.copy_(torch.tensor([0., 9., -9.]))  # "perhaps, surely, never"
    x = torch.rand(1, 1, 16, 16)
    plain, heard = SimpleNamespace(probabilities=torch.sigmoid).probabilities(net(x)), class_probabilities(net, SimpleNamespace(probabilities=torch.sigmoid), x)
(heard/plain).mean((0, 2, 3))


# %% [markdown]
# ## Packages that may be missing
#
# Two families of networks come from other packages. They are an extra, `ctseg[zoo]`, and asked for only when such a network is built.
#
# timm is always there, but it imports torchvision, and torchvision built for CUDA beside a PyTorch for the CPU stops with "operator torchvision::nms does not exist": its compiled half cannot be
# loaded. Nothing here needs that half, so declaring the two operators' signatures is enough. Where torchvision is sound this does nothing.

# %%
#| export
def import_timm():
    "timm, also beside a torchvision whose compiled operators cannot be loaded."
    try: import torchvision
    except RuntimeError as e:
        if "torchvision::nms" not in str(e): raise
        for m in [m for m in sys.modules if m.split(".")[0] == "torchvision"]: del sys.modules[m]
        lib = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"): lib.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
        torchvision._ctseg_lib = lib  # the declaration lives as long as this object
    import timm
    return timm

def import_zoo(module: str, model: str):
    "Import `module` of an optional package; if it is missing, an `InputError` tells how to get it."
    import importlib
    import_timm()
    try: return importlib.import_module(module)
    except ImportError as e:
        raise InputError(f"model {model!r} needs the package {module.split('.')[0]} ({e}); install it with: pip install 'ctseg[zoo]'") from None


# %%
test_eq(import_timm().__name__, "timm")
try: import_zoo("no_such_package.unet", "nnunet")
except InputError as e: print(e)


# %% [markdown]
# ## Can it learn at all?
#
# The oldest sanity check of a network: let it see the same four slices thirty times. A network with a broken gradient, a misplaced skip or a
# decoder that ignores half its input cannot learn them by heart. Each architecture's notebook ends with this check.

# %%
#| export
def toy_slices(
    n: int = 4,
    size: int = 64, # height and width
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]: # images f32 [n,1,size,size] in 0..1, masks i64 [n,size,size] with classes 1..3
    "A body with two lungs-like dark ellipses (1 left, 2 right) and a bright round one (3), a little different each time."
    g = torch.Generator().manual_seed(seed)
    r = lambda lo, hi: torch.rand(n, 1, 1, generator=g)*(hi - lo) + lo
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)]*2, indexing="ij")
    inside = lambda cy, cx, ry, rx: ((y - cy)/ry)**2 + ((x - cx)/rx)**2 < 1
    dy, dx = r(-.1, .1), r(-.1, .1)
    body = inside(dy, dx, r(.8, .9), r(.85, .95))
    organs = [inside(dy + y0, dx + x0, r(*ry), r(*rx)) for y0, x0, ry, rx in ((-.15, -.48, (.3, .45), (.22, .28)), (-.15, .48, (.3, .45), (.22, .28)),
                                                                              (.45, 0, (.25, .3), (.25, .3)))]
    image, mask = body*.5, torch.zeros(n, size, size, dtype=torch.long)
    for c, (where, grey) in enumerate(zip(organs, (.15, .15, .8)), 1):
        image, mask = torch.where(where, torch.tensor(grey), image), torch.where(where, c, mask)
    return (image + .05*torch.randn(n, size, size, generator=g)).clamp(0, 1)[:, None], mask


# %% [markdown]
# The pages on [teacher and student](teacher_student.html) and its kin need the same bodies as people annotate them: in noise, each structure missing on every fourth slice, and a few slices on which two of the three were looked for.

# %%
#| export
def toy_set(
    n: int = 40,
    labelled: int = 10, # the first ones; on each, two structures count as examined
    size: int = 48,
    seed: int = 0,
) -> tuple[SliceSet, np.ndarray]: # the slices, and the whole truth uint8 [n,size,size]
    "Noisy, partly annotated `toy_slices`, two a patient, with the truth that nobody outlined."
    images, masks = (t.numpy().astype(np.float32) for t in toy_slices(n, size, seed))
    rng, truth, known = np.random.default_rng(seed), masks.astype(np.uint8), np.zeros((n, 3), bool)
    for i in range(n):
        gone = np.isin(truth[i], 1 + np.flatnonzero(rng.random(3) < .25)) & (truth[i] > 0)
        truth[i][gone], images[i, 0][gone] = 0, .5
        if i < labelled: known[i, rng.choice(3, 2, replace=False)] = True
    grey = (.35 + .4*images[:, 0] + rng.normal(0, .08, truth.shape)).clip(0, 1)
    outlined = np.where(np.pad(known, ((0, 0), (1, 0)))[np.arange(n)[:, None, None], truth], truth, 0)
    return SliceSet((255*grey).astype(np.uint8), outlined, known, [f"{i}.png" for i in range(n)], np.arange(n)//2, ClassMap.from_names(["lung_right", "lung_left", "heart"])), truth


# %%
toys, truth = toy_set(4, 2)
fig, axes = plt.subplots(3, 4, figsize=(7, 5), layout="constrained")
for i, (image, top, bottom) in enumerate(axes.T):
    image.imshow(toys.images[i], cmap="gray", vmin=0, vmax=255); top.imshow(toys.classes.colourise(truth[i])); bottom.imshow(toys.classes.colourise(toys.masks[i]))
    image.set_title("looked for: " + (", ".join(n for n, k in zip(toys.classes.names, toys.known[i]) if k) or "nothing"), fontsize=7)
for ax, label in zip(axes[:, 0], ("slice", "truth", "outlined")): ax.set_ylabel(label)
for ax in axes.flat: ax.set(xticks=[], yticks=[])
plt.show()


# %%
#| export
def overfit(
    model: EncoderDecoder, images: torch.Tensor, masks: torch.Tensor, # a handful of slices
    steps: int = 30, lr: float = .01,
) -> tuple[list[float], torch.Tensor]: # the loss of each step; then, in eval mode, the Dice of each class but the background
    "Show the same slices again and again with balanced cross-entropy plus twice the Dice loss; a sound network learns them by heart."
    target = F.one_hot(masks).movedim(-1, 1).float()
    rare = target.mean((0, 2, 3))**-.7  # with so few steps, small classes need a louder voice
    weight = rare*len(rare)/rare.sum()
    dice = lambda p: 2*(p*target).sum((0, 2, 3))/(p.sum((0, 2, 3)) + target.sum((0, 2, 3))).clamp(min=1e-6)
    opt = torch.optim.AdamW(model.train().parameters(), lr=lr, betas=(.9, .95))
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=.3, cycle_momentum=False)
    losses = []
    for _ in range(steps):
        out = model(images)
        out = out[0] if isinstance(out, list) else out  # deep supervision: the finest
        loss = F.cross_entropy(out, masks, weight) + 2*(1 - dice(out.softmax(1)).mean())
        opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(model.parameters(), .5)
        opt.step(); sched.step()
        losses.append(loss.item())
    with torch.no_grad():
        for _ in range(20): model(images)  # no learning: the running averages of batch normalisation lag behind thirty quick steps
        best = model.eval()(images).argmax(1)
    return losses, dice(F.one_hot(best, target.shape[1]).movedim(-1, 1).float())[1:]


# %% [markdown]
# The two organs at the sides look alike on purpose: only *where* they are tells them apart, as with the left and the right kidney.
# `Tiny`, which sees nine pixels around, has no chance there, and that shows. The real networks must do better.

# %%
images, masks = toy_slices()
torch.manual_seed(0)
losses, dice = overfit(Tiny(1, 4), images, masks, steps=60, lr=.1)
fig, ax = plt.subplots(1, 5, figsize=(11, 2.3))
for a, i, m in zip(ax, images, masks):
    a.imshow(i[0], cmap="gray"); a.imshow(torch.where(m > 0, m, torch.nan), alpha=.5, cmap="brg", vmin=1, vmax=3); a.axis("off")
ax[4].plot(losses); ax[4].set(title="Tiny's loss", xlabel="step", ylabel="loss"); fig.tight_layout()
print("Dice of Tiny: left {:.2f}, right {:.2f}, bright {:.2f}".format(*dice))
assert dice.min() < .8

# %%
#| hide
import nbdev; nbdev.nbdev_export()

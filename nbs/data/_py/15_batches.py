# %% [markdown]
# # Batches
#
# > Slices as tensors on the training device, with `known` and pixel weights beside them.
#
# - skip_showdoc: true

# %%
#| default_exp data.batches

# %% [markdown]
# A network eats `Batch`es: floats for the images, integers for the masks, and `known` comes along. `SliceData` makes them from a
# [`SliceSet`](10_slices.ipynb).

# %%
#| export
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ctseg.core.anatomy import IGNORE
from ctseg.data.slices import SliceSet, known_after_resize

# %%
#| hide
import numpy as np
import torch
from fastcore.test import test_close, test_eq

from ctseg.data.batches import SliceData
from ctseg.data.slices import SliceSet, with_context
from ctseg.data.stacks import stacks_of
from ctseg.data.toys import toy_set

# %%
toy, _ = toy_set(6, 4, size=64)
batch = SliceData(toy).batch([0, 3])
for part in ("image", "mask", "known"):
    tensor = getattr(batch, part)
    print(f"{part:5} {str(tensor.dtype):13} {list(tensor.shape)}")
print("structures examined on each slice:", batch.known.sum(1).tolist())


# %% [markdown]
# ## Batch
#
# `known` speaks of whole images, `[B,C]`, until two images are mixed into one. From then on it is a map `[B,C,H,W]`: what is known differs
# from pixel to pixel.

# %%
#| export
def known_map(
    known: torch.Tensor, # bool [B,C] or [B,C,H,W]
    size, # (H, W), or (D, H, W)
) -> torch.Tensor: # bool [B,C,H,W]
    "`known` as a map bool [B,C,H,W]. [B,C] is expanded without a copy; a map stays as it is."
    if known.ndim > 2:
        return known
    return known.reshape(*known.shape, *[1]*len(size)).expand(-1, -1, *size)


# %% [markdown]
# What was known of a slice holds for each of its six pixels.

# %%
test_eq(known_map(torch.tensor([[True, False]]), (2, 3)).sum((2, 3)), torch.tensor([[6, 0]]))


# %%
#| export
@dataclass
class Batch:
    "B slices on the training device; `batch[rows]` takes some of them."
    image: torch.Tensor # float32 [B,K,H,W] in 0…1; K: 1, more with neighbours
    mask: torch.Tensor # int64 [B,H,W]; 0 = background or unknown, 255 = ignored
    known: torch.Tensor # bool [B,C], or [B,C,H,W] after mixing
    weight: torch.Tensor|None = None # f32 [B,1,H,W] or [B,C,H,W]; `None`: all 1
    index: torch.Tensor|None = None # int64 [B]: positions in the `SliceSet`

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows) -> "Batch":
        given = {k: t for k, t in vars(self).items() if t is not None}
        return replace(self, **{k: t[rows] for k, t in given.items()})

    def concat(self, other: "Batch|None") -> "Batch":
        "Both as one; weights that one lacks are 1."
        if other is None:
            return self
        known = [self.known, other.known]
        if self.known.ndim != other.known.ndim:
            known = [known_map(k, self.mask.shape[1:]) for k in known]
        weight = None
        if self.weight is not None or other.weight is not None:
            weight = torch.cat([b.pixel_weights() for b in (self, other)])
        parts = [(getattr(self, k), getattr(other, k)) for k in ("image", "mask", "index")]
        image, mask, index = map(torch.cat, parts)
        return Batch(image, mask, torch.cat(known), weight, index)

    def pixel_weights(self) -> torch.Tensor:
        "f32 [B,1,H,W] or [B,C,H,W]: `weight`, or ones where there is none."
        return torch.ones_like(self.image[:, :1]) if self.weight is None else self.weight


# %% [markdown]
# A batch with weights can be joined to one without: there every pixel counts fully.

# %%
one = Batch(
    torch.zeros(1, 1, 2, 2),
    torch.zeros(1, 2, 2).long(),
    torch.tensor([[True, False]]),
    index=torch.tensor([7]),
)
weighted = Batch(
    one.image, one.mask, known_map(one.known, (2, 2)), torch.full((1, 1, 2, 2), .5), torch.tensor([8])
)
both = one.concat(weighted)
test_eq((len(both), both.index.tolist(), both.known.shape), (2, [7, 8], (2, 2, 2, 2)))
test_eq(both.weight.mean((1, 2, 3)).tolist(), [1, .5])
test_eq(both[1:].index.tolist(), [8])


# %% [markdown]
# To learn which classes a batch of masks shows, no loop over classes is needed: every pixel marks its class.

# %%
#| export
def class_in_mask(
    mask: torch.Tensor, # int64 [B,H,W]
    C: int, # number of classes
) -> torch.Tensor: # bool [B,C]
    "Which classes have a pixel in each mask: int64 [B,H,W] → bool [B,C]; 255 is none."
    seen = torch.zeros(len(mask), IGNORE + 1, dtype=torch.bool, device=mask.device)
    return seen.scatter_(1, mask.flatten(1), True)[:, 1:C + 1]


# %% [markdown]
# The same question as for masks in memory, asked of a tensor:

# %%
test_eq(
    class_in_mask(torch.tensor([[[0, 3], [3, 0]], [[1, 1], [0, 0]]]), 3).tolist(),
    [[False, False, True], [True, False, False]],
)


# %% [markdown]
# ## SliceData
#
# The whole challenge, 2000 slices of 256x256 with masks, is 262 MB in 8 bits. That fits on any GPU. So `SliceData` keeps the bytes there,
# and a batch is a lookup and a conversion on the device: no worker processes and no copies from the host. It is a PyTorch map dataset as
# well, for those who prefer a `DataLoader`.

# %%
#| export
def _to_device(pixels: np.ndarray, size, device, **interpolation) -> torch.Tensor:
    "uint8 [N,H,W] on the device, resized if `size` is given; 256 at a time, since floats need more memory."
    x = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    if size is None:
        return x
    parts = []
    for part in x.split(256):
        resized = F.interpolate(part[:, None].float(), size, **interpolation)
        parts.append(resized.round().clamp(0, 255).byte()[:, 0])
    return torch.cat(parts)


# %% [markdown]
# Labels are enlarged without values in between.

# %%
steps = np.array([[[0, 100], [200, 200]]], np.uint8)
test_eq(_to_device(steps, (4, 4), "cpu", mode="nearest-exact")[0, :, 0].tolist(), [0, 0, 200, 200])


# %%
#| export
def _unit(x: torch.Tensor) -> torch.Tensor:
    "uint8 [B,H,W] or [B,K,H,W] → float32 [B,1,H,W] or [B,K,H,W] in 0…1."
    if x.ndim == 3: x = x[:, None]
    return x.float()/255


# %% [markdown]
# Grey values 0 to 255 become 0 to 1, to the last bit.

# %%
test_eq(
    _unit(torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)).flatten().tolist(),
    [0, torch.tensor(51.)/255, 1],
)


# %% [markdown]
# With [neighbours](09_stacks.ipynb) the images on the device are those that any stack needs, each once, and a batch looks up several for
# each slice.

# %%
#| export
class ImagesOnDevice(torch.utils.data.Dataset):
    "What a network sees of some slices, at one size (`None`: their own), on a device."
    def __init__(self, slices: SliceSet, device, size: tuple[int, int]|None):
        images, self.channels = slices.images, None
        if slices.stacks is not None:
            images, channels = slices.stacks.distinct()
            self.channels = torch.as_tensor(channels, device=device)  # int64 [N,K]: of which images
        self.images = _to_device(images, size, device, mode="bilinear", antialias=True)

    def image(self, index: torch.Tensor) -> torch.Tensor:
        "The slices at `index`, float32 [B,K,H,W]."
        return _unit(self.images[index if self.channels is None else self.channels[index]])


# %%
three = np.arange(3, dtype=np.uint8)[:, None, None]*np.ones((1, 4, 4), np.uint8)
in_order = stacks_of(three, np.zeros(3, int), np.arange(3), 1)
beside = SliceSet(three, classes=["liver"], stacks=in_order)[1:]
print(ImagesOnDevice(beside, "cpu", None).channels.tolist())
test_eq(ImagesOnDevice(with_context(beside, 0), "cpu", None).channels, None)


# %%
#| export
class SliceData(ImagesOnDevice):
    "A `SliceSet` on a device. `data[i]` is (image, mask, known, i), for a `DataLoader`."
    def __init__(self,
        slices: SliceSet,
        device = "cpu",
        image_size: int|tuple[int, int]|None = None, # `None`: as they are
        weights: np.ndarray|None = None, # bool [N,H,W]: which pixels teach; `None`: all
    ):
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        size = None if size == slices.image_shape else size
        super().__init__(slices, device, size)
        self.masks = _to_device(slices.masks, size, device, mode="nearest-exact")
        self.weights = weights
        if weights is not None:
            shares = np.asarray(weights, np.uint8)*255
            self.weights = _to_device(shares, size, device, mode="bilinear", antialias=True)
        known = slices.known
        if size is not None:
            known = known_after_resize(known, slices.present, self.masks.cpu().numpy())
        self.known = torch.tensor(known, device=device)

    def __len__(self): return len(self.masks)

    def batch(self, index) -> Batch:
        "The slices at `index`."
        index = torch.as_tensor(index, dtype=torch.int64, device=self.images.device)
        weight = None if self.weights is None else _unit(self.weights[index])
        return Batch(self.image(index), self.masks[index].long(), self.known[index], weight, index)

    def __getitem__(self, i):
        b = self.batch([i])
        return b.image[0], b.mask[0], b.known[0], i


# %%
toy, _ = toy_set(6, 4, size=64)
data = SliceData(toy)
batch = data.batch([0, 3])
print(
    "image",
    list(batch.image.shape),
    batch.image.dtype,
    "  mask",
    batch.mask.dtype,
    "  known",
    batch.known.tolist(),
)
test_close(batch.image[1, 0].numpy(), toy.images[3]/255, eps=1e-6)
image, mask, known, i = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
test_eq((image.shape, i.tolist()), ((3, 1, 64, 64), [0, 1, 2]))

# %% [markdown]
# The middle slice with both neighbours, and the last one, which has none above:

# %%
batch = SliceData(beside).batch([0, 1])
print((255*batch.image[:, :, 0, 0]).int().tolist())
test_eq(batch.image.shape, (2, 3, 4, 4))

# %% [markdown]
# At another size grey values are blended and mask values picked, so no class is invented between two others. Pixel weights are blended.

# %%
small = SliceData(toy, image_size=32)
test_eq(small.batch([0]).image.shape, (1, 1, 32, 32))
assert set(np.unique(small.masks)) <= set(np.unique(toy.masks))
left_half = np.arange(64) < np.full((len(toy), 64, 1), 32)  # only the left half teaches
weight = SliceData(toy, weights=left_half).batch([1]).weight
test_eq((weight.shape, weight[0, 0, 0, [0, 31, 32]].tolist()), ((1, 1, 64, 64), [1, 1, 0]))

# %% [markdown]
# One pixel is too small to survive half the size. Its class becomes unknown, and the classes examined in vain stay absent:

# %%
dot = np.zeros((1, 64, 64), np.uint8)
dot[0, 10, 10] = 1
dot = SliceSet(toy.images[:1], dot, "all", classes=toy.classes)
test_eq(SliceData(dot, image_size=64).known.tolist(), [[True, True, True]])
test_eq(SliceData(dot, image_size=32).known.tolist(), [[False, True, True]])

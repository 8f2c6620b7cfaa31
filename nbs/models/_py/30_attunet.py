# %% [markdown]
# # Attention U-Net
#
# > A U-Net whose skip connections are told where to look.
#
# - skip_showdoc: true

# %%
#| default_exp models.attunet

# %%
#| export
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ctseg.models.base import EncoderDecoder, check_counts, crop_to, pad_to

# %%
#| hide
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from fastcore.test import test_close, test_eq

from ctseg.core.toys import toy_slices
from ctseg.models.base import count_parameters, overfit

# %% [markdown]
# A U-Net's skip connections carry everything that the early layers saw: every edge of every rib goes across, needed or
# not. [Oktay et al. (2018)](https://arxiv.org/abs/1804.03999) put a **gate** on each connection. The deeper layer has seen more of the image and knows
# roughly where the organs are. It multiplies each pixel of the skip by a weight between 0 and 1. A gate costs three small 1x1 convolutions a level and
# is learned from the segmentation alone. This was the best network of the original project. Most recipes take it, and the default, `ctseg`, does for slices under 128 pixels.

# %%
#| echo: false
#| fig-alt: "The Attention U-Net: five encoder levels, four decoder levels, a gate on each skip"
fig, ax = plt.subplots(figsize=(8.5, 3.6))
box = dict(ha="center", va="center", fontsize=9)
for k in range(5):
    w, y = 64*2**k, -k
    ax.text(-3 + k*.62, y, f"{w}", bbox=dict(boxstyle="round", fc="#cfe3f5", ec="#4477aa"), **box)
    if k < 4:
        ax.text(3 - k*.62, y, f"{w}", bbox=dict(boxstyle="round", fc="#d8ecd2", ec="#338833"), **box)
        ax.text(
            1.1 - k*.32,
            y,
            "gate",
            bbox=dict(boxstyle="circle,pad=.25", fc="#fbe2b4", ec="#cc7711"),
            ha="center",
            va="center",
            fontsize=8,
        )
        arrow = lambda a, b, c="k": ax.annotate(
            "", b, a, arrowprops=dict(arrowstyle="->", color=c, shrinkA=11, shrinkB=11)
        )
        arrow((-3 + k*.62, y), (1.1 - k*.32, y), "#777777")
        arrow((1.1 - k*.32, y), (3 - k*.62, y), "#777777")
        arrow((-3 + k*.62, y), (-3 + (k + 1)*.62, y - 1))
        below = (3 - (k + 1)*.62, y - 1) if k < 3 else (-3 + 4*.62, -4)
        arrow(below, (3 - k*.62, y))
        arrow(below, (1.1 - k*.32, y), "#cc7711")
ax.text(-4.1, 0, "image", **box)
ax.text(4.1, 0, "logits", **box)
ax.annotate("", (-3.2, 0), (-3.8, 0), arrowprops=dict(arrowstyle="->"))
ax.annotate("", (3.8, 0), (3.2, 0), arrowprops=dict(arrowstyle="->"))
for k in range(5): ax.text(5.1, -k, f"1/{2**k}" if k else "full size", color="#777777", **box)
ax.set(xlim=(-4.6, 5.6), ylim=(-4.5, .5))
ax.axis("off")
fig.tight_layout()


# %% [markdown]
# Blue: the encoder, two 3x3 convolutions a level, halving the image and doubling the channels. Green: the decoder. Orange arrows: the deeper
# layer steers the gate that the skip passes through.
#
# ## Two convolutions
#
# Most of the network consists of this block. `inplace` in the ReLU saves one copy of each activation; nothing else needs the values before it.

# %%
#| export
class DoubleConv(nn.Sequential):
    "Twice: 3x3 convolution, batch normalisation, ReLU; `[B, i, H, W]` -> `[B, o, H, W]`."

    def __init__(self, i: int, o: int):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
        )


# %% [markdown]
# Channels change, and the size stays:

# %%
out = DoubleConv(3, 8)(torch.rand(2, 3, 16, 12))
print((2, 3, 16, 12), "->", tuple(out.shape))
test_eq(out.shape, (2, 8, 16, 12))


# %% [markdown]
# On the way up, pixels are repeated and a 3x3 convolution smooths the steps. Done literally this wastes work: each output pixel multiplies nine inputs, but at most four of them differ. If we first add up the
# weights that meet the same input, we get a 4x4 kernel for a transposed convolution of the small map. The result is the same, with 2.25 times fewer multiplications. Along one axis, each of the four new weights
# is the sum of the old ones in its row of the matrix below; for both axes that is one product of the nine weights with a constant 9x16 matrix.

# %%
#| export
class UpConv(nn.Sequential):
    "Double the size by repeating pixels, then a 3x3 convolution, batch normalisation, ReLU."

    def __init__(self, i: int, o: int):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
        )
        axis = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
        both = np.ascontiguousarray(np.kron(axis, axis).T)
        self.register_buffer("sums", torch.from_numpy(both), persistent=False)  # [9, 16]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        "`[B, i, H, W]` -> `[B, o, 2H, 2W]`."
        conv, norm, relu = self
        taps = conv.weight.transpose(0, 1).flatten(2)
        kernel = (taps @ self.sums).unflatten(2, (4, 4))  # [i, o, 4, 4]
        doubled = F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)
        return relu(norm(doubled))


# %%
torch.manual_seed(0)
up, x = UpConv(6, 5).eval(), torch.rand(2, 6, 7, 9)
plain = up[2](up[1](up[0](F.interpolate(x, scale_factor=2))))
print(tuple(x.shape), "->", tuple(up(x).shape))
test_close(up(x).detach(), plain.detach(), 1e-6)  # as if done literally


# %% [markdown]
# ## The gate
#
# *Additive attention* (equations 1 and 2 of the paper): the skip $x$ and the gating signal $g$ are each mapped to a common small space, added,
# rectified, and mapped to one number a pixel:
#
# $$\alpha = \sigma\big(\psi^\top\,\mathrm{ReLU}(W_x x + W_g g)\big), \qquad \hat x = \alpha\,x .$$
#
# In the paper $g$ is the coarser feature map itself and $\alpha$ is interpolated. Here $g$ is brought to the size of $x$ first,
# as in the implementation that nearly everyone uses (and that the original project used). The extra cost is small, because the
# decoder needs the enlarged map anyway.

# %%
#| export
def project(i: int, o: int) -> nn.Sequential:
    "A 1x1 convolution and batch normalisation: `[B, i, H, W]` -> `[B, o, H, W]`."
    return nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))


# %%
print(tuple(project(8, 4)(torch.rand(2, 8, 6, 6)).shape))


# %%
#| export
class AttentionGate(nn.Module):
    "Weighs each pixel of a skip connection by how much the gating signal asks for it (equations 1 and 2)."

    def __init__(self, channels: int):
        super().__init__()
        mid = max(channels//2, 1)
        self.gate = project(channels, mid)
        self.skip = project(channels, mid)
        self.psi = project(mid, 1)

    def attention(self, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        "Weights in 0…1, `[B, 1, H, W]`, of the pixels of a skip `x` for a gating signal `g`, both `[B, c, H, W]`."
        common = F.relu(self.gate(g) + self.skip(x), inplace=True)
        return torch.sigmoid(self.psi(common))

    def forward(self, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        "The skip `x` [B, c, H, W], weighted; the gating signal `g` is already at its size."
        return x*self.attention(g, x)


# %%
torch.manual_seed(0)
gate, asked, skip = AttentionGate(8), torch.rand(1, 8, 4, 4), torch.rand(1, 8, 4, 4)
weights = gate.attention(asked, skip)
print("one weight a pixel:", tuple(weights.shape), f"from {weights.min():.2f} to {weights.max():.2f}")
test_close(gate(asked, skip), skip*weights)


# %% [markdown]
# ## The network
#
# `width` is the number of channels at full resolution; each level below has twice as many. 64 is the published size; 16 has a sixteenth of the parameters
# and is what the tests use.

# %%
#| export
class AttentionUNet(EncoderDecoder):
    "Attention U-Net (Oktay et al. 2018, arXiv 1804.03999), five levels."
    stride = 16

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 55,
        width: int = 64, # channels at full resolution, doubled at each level below
    ):
        super().__init__()
        check_counts("attunet", in_chans=in_chans, out_chans=out_chans, width=width)
        levels = tuple(width*2**k for k in range(5))
        self.channels = levels
        self.down = nn.ModuleList(map(DoubleConv, (in_chans, *levels[:-1]), levels))
        self.up = nn.ModuleList(map(UpConv, levels[1:], levels[:-1]))
        self.gate = nn.ModuleList(map(AttentionGate, levels[:-1]))
        self.merge = nn.ModuleList(DoubleConv(2*c, c) for c in levels[:-1])
        self.head = nn.Conv2d(width, out_chans, 1)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        "Features of five levels, `[B, width·2^k, H/2^k, W/2^k]`, of images `[B, in_chans, H, W]`."
        features = [self.down[0](pad_to(x, self.stride))]
        for down in self.down[1:]:
            half = F.max_pool2d(features[-1], 2)
            features.append(down(half))
        return features

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        "Logits `[B, out_chans, *size]` from the features of `encode`."
        *skips, x = features
        for k in reversed(range(len(skips))):
            g = self.up[k](x)
            wanted = self.gate[k](g, skips[k])
            x = self.merge[k](torch.cat([wanted, g], 1))
        return crop_to(self.head(x), size)


# %%
torch.manual_seed(0)
model = AttentionUNet(1, 55, width=8)
x = torch.rand(2, 1, 61, 47)
features = model.encode(x)
for f in features: print("feature", tuple(f.shape))
print("logits ", tuple(model(x).shape))
test_eq([f.shape[1] for f in features], model.channels)

# %% [markdown]
# ## Is it the published network?
#
# A parameter count is a strict check: one layer too many, a forgotten bias or a wrong width changes it. The implementation that most papers
# build on, `AttU_Net` in [LeeJunHyun/Image_Segmentation](https://github.com/LeeJunHyun/Image_Segmentation) (`network.py`, commit 7a6e5f9; read for its
# layer sizes, no code taken), has 34,878,573 parameters for 3 -> 1 channels. The original project's 1 -> 55 network differs only in its first and last layer.

# %%
test_eq(count_parameters(AttentionUNet(3, 1)), 34_878_573)
test_eq(count_parameters(AttentionUNet(1, 55)), 34_880_931)
# 54 more outputs of 64 weights and a bias; 2 fewer inputs of 3x3 to 64
test_eq(34_880_931 - 34_878_573, 54*65 - 2*9*64)
for w in 8, 16, 32, 64: print(f"width {w:2}: {count_parameters(AttentionUNet(1, 55, w)):11,} parameters")

# %% [markdown]
# ## Thirty steps
#
# Four slices with a left and a right organ that look alike, and a bright one: can the network learn them by heart? And what do its gates do?

# %%
images, masks = toy_slices()
torch.manual_seed(0)
model = AttentionUNet(1, 4, width=16)
losses, dice = overfit(model, images, masks, lr=.03)
print("Dice: left {:.3f}, right {:.3f}, bright {:.3f}".format(*dice))
assert dice.min() > .9


# %%
#| fig-alt: "Two slices, their four gates from deep to shallow, and the prediction"
def gates(model, x):
    "The attention of each gate, from deep to shallow, caught by hooks while the image passes."
    maps = []
    hooks = [g.psi.register_forward_hook(lambda m, i, o: maps.append(o.sigmoid())) for g in model.gate]
    with torch.no_grad(): pred = model.eval()(x).argmax(1)
    for h in hooks: h.remove()
    return maps, pred

maps, pred = gates(model, images)
fig, ax = plt.subplots(2, 6, figsize=(11, 3.9))
for row, b in zip(ax, (0, 2)):
    row[0].imshow(images[b, 0], cmap="gray")
    for a, m in zip(row[1:5], maps): a.imshow(m[b, 0], cmap="inferno", vmin=0, vmax=1)
    row[5].imshow(pred[b], cmap="nipy_spectral", vmin=0, vmax=4)
    for a in row: a.axis("off")
for a, t in zip(
    ax[0], ["image", "gate at 1/8", "gate at 1/4", "gate at 1/2", "gate at full size", "prediction"]
):
    a.set_title(t, fontsize=10)
fig.tight_layout()

# %% [markdown]
# Bright means "let this through". Nobody told the gates where the organs are, yet they share the work: the deepest only tells regions apart, the next two pick out organs, and
# the last follows outlines. But a gate's map does not explain the prediction: it weighs *features*, and the decoder can undo it.
#
# Every parameter must get a gradient, or part of the network is decoration:

# %%
model = AttentionUNet(1, 4, width=4)
model(images).square().mean().backward()
test_eq([n for n, p in model.named_parameters() if p.grad is None], [])

# %% [markdown]
# # UCTransNet
#
# > A U-Net whose skip connections exchange information, channel by channel, before the decoder reads them.
#
# - skip_showdoc: true

# %%
#| default_exp models.uctransnet

# %%
#| export
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctseg.models.base import EncoderDecoder, check_counts, crop_to, pad_to

# %%
#| hide
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn

from ctseg.core.toys import toy_slices
from ctseg.models.base import count_parameters, overfit

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))  # grey maps: a quarter of a PNG

# %% [markdown]
# Are a U-Net's skip connections always good? [Wang et al. (2022)](https://arxiv.org/abs/2109.04335) removed them one by one and found that some *hurt*: the features of a shallow
# level need not fit those of the decoder that receives them (a *semantic gap*). **UCTransNet** therefore keeps the U-Net and replaces its
# skips by a transformer. Its attention is unusual: it compares **channels** instead of pixels. Each channel of each level asks all channels of all levels, "which of you
# shows something I could use?" A second, smaller attention then chooses channels on the way into the decoder.
#
# With channels as tokens the attention matrix has the same size for every image.

# %%
#| echo: false
#| fig-alt: "UCTransNet: a U-Net whose skips pass a transformer over channels, then a choice of channels"
fig, ax = plt.subplots(figsize=(9, 3.4))
txt = dict(ha="center", va="center", fontsize=9)
for k, (c, o) in enumerate([(64, 64), (128, 64), (256, 128), (512, 256), (512, None)]):
    ax.text(-3.4 + k*.35, -k, f"{c}", bbox=dict(boxstyle="round", fc="#cfe3f5", ec="#4477aa"), **txt)
    if k:
        ax.annotate(
            "",
            (-3.4 + k*.35, -k + .25),
            (-3.4 + (k - 1)*.35, -k + .75),
            arrowprops=dict(arrowstyle="->"),
        )
    if o is None: continue
    ax.text(3.6 - k*.35, -k, f"{o}", bbox=dict(boxstyle="round", fc="#d8ecd2", ec="#338833"), **txt)
    ax.text(
        2. - k*.2,
        -k,
        "choose",
        bbox=dict(boxstyle="circle,pad=.15", fc="#fbe2b4", ec="#cc7711"),
        ha="center",
        va="center",
        fontsize=7,
    )
    ax.annotate("", (-.95, -k), (-3.1 + k*.35, -k), arrowprops=dict(arrowstyle="->", color="#777777"))
    ax.annotate("", (1.65 - k*.2, -k), (.95, -k), arrowprops=dict(arrowstyle="->", color="#777777"))
    ax.annotate("", (3.3 - k*.35, -k), (2.35 - k*.2, -k), arrowprops=dict(arrowstyle="->", color="#777777"))
    below = (3.6 - (k+1)*.35, -k - .75) if k < 3 else (-3.4 + 4*.35 + .3, -4)
    ax.annotate("", (3.6 - k*.35, -k - .25), below, arrowprops=dict(arrowstyle="->"))
    ax.text(0, -k, f"{c} channels", color="#884400", **txt)
ax.add_patch(plt.Rectangle((-.95, -3.4), 1.9, 3.8, fc="#fbe2b4", ec="#cc7711", alpha=.5))
ax.text(0, .62, "channel transformer, four layers", color="#884400", **txt)
ax.text(-4.5, 0, "image", **txt)
ax.annotate("", (-3.8, 0), (-4.2, 0), arrowprops=dict(arrowstyle="->"))
ax.text(4.7, 0, "logits", **txt)
ax.annotate("", (4.4, 0), (3.95, 0), arrowprops=dict(arrowstyle="->"))
ax.set(xlim=(-4.9, 5.1), ylim=(-4.4, .9))
ax.axis("off")
fig.tight_layout()


# %% [markdown]
# ## Tokens
#
# All four levels are cut into the same patches of 16x16 pixels of the image (16x16 feature pixels at full resolution, 2x2 at an eighth), so patch *n* is the same place on every
# level. A learned position embedding is added. It is made for one image size and interpolated for others.

# %%
#| export
class ConvNormReLU(nn.Sequential):
    "3x3 convolution, batch normalisation, ReLU: [B, i, H, W] -> [B, o, H, W]."

    def __init__(self, i: int, o: int):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
        )


class PatchTokens(nn.Module):
    "Cut a map [B, C, H, W] into patches: tokens [B, N, C], with a position embedding of `grid` x `grid`."

    def __init__(self, dim: int, patch: int, grid: int, dropout: float):
        super().__init__()
        self.cut = nn.Conv2d(dim, dim, patch, patch)
        self.drop = nn.Dropout(dropout)
        self.position = nn.Parameter(torch.zeros(1, dim, grid, grid))

    def forward(self, x: Tensor) -> Tensor:
        "[B, C, H, W] -> [B, N, C]; the embedding is interpolated where the grid has another size."
        x = self.cut(x)
        size = x.shape[-2:]
        place = self.position
        # a graph for every size must always interpolate; at the grid's own size nothing changes
        if torch.onnx.is_in_onnx_export() or size != place.shape[-2:]:
            place = F.interpolate(place, size=size, mode="bilinear", align_corners=False)
        tokens = (x + place).flatten(2).transpose(1, 2)
        return self.drop(tokens)


# %%
cut = PatchTokens(8, patch=16, grid=4, dropout=0)
for size in ((64, 64), (64, 48)):
    print(size, "->", tuple(cut(torch.rand(1, 8, *size)).shape[1:]), "tokens x channels")


# %% [markdown]
# ## Attention among channels
#
# In ordinary attention the matrix is tokens x tokens. Here (the paper's equations 2 and 3) queries and keys are transposed before they are multiplied, so it is *channels x channels*:
#
# $$\mathrm{CA}_i = \mathrm{softmax}\left[\psi\left(\frac{Q_i^\top K}{\sqrt{C_\Sigma}}\right)\right] V^\top$$
#
# with $Q_i$ from level $i$, and $K, V$ from all levels side by side ($C_\Sigma$ channels). $\psi$ is an instance normalisation of each matrix: without it the differences
# between channels would be too small for the softmax to notice. The four heads are averaged.

# %%
#| export
class ChannelAttention(nn.Module):
    "Every channel of every level attends to all channels of all levels (equations 2 and 3)."

    def __init__(self, dims: tuple[int, ...], heads: int = 4, dropout: float = .1):
        super().__init__()
        total = sum(dims)
        self.heads = heads
        self.scale = total**-.5
        self.q = nn.ModuleList(
            nn.Linear(d, d*heads, bias=False) for d in dims
        )
        self.out = nn.ModuleList(
            nn.Linear(d, d, bias=False) for d in dims
        )
        self.k = nn.Linear(total, total*heads, bias=False)
        self.v = nn.Linear(total, total*heads, bias=False)
        self.psi = nn.InstanceNorm2d(heads)
        self.drop = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        "[B, N, heads·c] -> [B, heads, N, c]."
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        levels: list[Tensor], # [B, N, dims[i]] each
        joint: Tensor, # all side by side [B, N, sum(dims)]
    ) -> list[Tensor]:
        "What each level gathers, [B, N, dims[i]] each."
        k = self.split(self.k(joint))
        v = self.split(self.v(joint)).transpose(-1, -2)
        heard = []
        for x, ask, out in zip(levels, self.q, self.out):
            q = self.split(ask(x)).transpose(-1, -2)
            alike = q @ k*self.scale  # [B, heads, dims[i], sum(dims)]
            attention = self.psi(alike).softmax(-1)
            by_head = self.drop(attention) @ v
            answers = by_head.mean(1).transpose(-1, -2)
            heard.append(self.drop(out(answers)))
        return heard


# %%
torch.manual_seed(0)
levels = [torch.rand(1, 12, 4), torch.rand(1, 12, 8)]
attention = ChannelAttention((4, 8), heads=2)
gathered = attention(levels, torch.cat(levels, -1))
print([tuple(x.shape) for x in levels], "->", [tuple(y.shape) for y in gathered])
test_eq([y.shape for y in gathered], [x.shape for x in levels])


# %% [markdown]
# A layer of the transformer is the usual one: attention and a feed-forward network, each after a layer norm and beside a skip, for four streams at once.

# %%
#| export
def layer_norms(dims: tuple[int, ...]) -> nn.ModuleList:
    "A layer norm for the channels of each level."
    return nn.ModuleList(nn.LayerNorm(d, eps=1e-6) for d in dims)


def feed_forward(dim: int) -> nn.Sequential:
    "Two linear layers with a GELU between them: tokens [B, N, dim] -> [B, N, dim]."
    wide = 4*dim
    return nn.Sequential(
        nn.Linear(dim, wide),
        nn.GELU(),
        nn.Linear(wide, dim),
    )


class ChannelLayer(nn.Module):
    "One layer of the channel transformer for the tokens of all levels."

    def __init__(self, dims: tuple[int, ...], heads: int, dropout: float):
        super().__init__()
        self.norm1 = layer_norms(dims)
        self.norm_joint = nn.LayerNorm(sum(dims), eps=1e-6)
        self.norm2 = layer_norms(dims)
        self.attention = ChannelAttention(dims, heads, dropout)
        self.ffn = nn.ModuleList(feed_forward(d) for d in dims)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        "Tokens [B, N, dims[i]] of each level, of the same shapes."
        joint = self.norm_joint(torch.cat(levels, -1))
        normed = [norm(x) for norm, x in zip(self.norm1, levels)]
        heard = self.attention(normed, joint)
        levels = [x + y for x, y in zip(levels, heard)]
        normed = [norm(x) for norm, x in zip(self.norm2, levels)]
        transformed = [ffn(x) for ffn, x in zip(self.ffn, normed)]
        return [x + y for x, y in zip(levels, transformed)]


# %% [markdown]
# The levels keep their shapes:

# %%
layer = ChannelLayer((4, 8), heads=2, dropout=0)
print([tuple(y.shape) for y in layer(levels)])
test_eq([y.shape for y in layer(levels)], [x.shape for x in levels])


# %% [markdown]
# ## Instead of skips
#
# The way back from tokens to maps: enlarge, a 1x1 convolution, batch normalisation, ReLU, and add the original features. A 1x1 convolution gives the same result before or
# after pixels are repeated. So we convolve first and enlarge last, which at full resolution saves a factor of 256.

# %%
#| export
def project_back(dim: int) -> nn.Sequential:
    "A 1x1 convolution, batch normalisation, ReLU: [B, dim, H, W] -> [B, dim, H, W]."
    return nn.Sequential(
        nn.Conv2d(dim, dim, 1),
        nn.BatchNorm2d(dim),
        nn.ReLU(inplace=True),
    )


class ChannelTransformer(nn.Module):
    "What UCTransNet has in place of skip connections: maps in, maps of the same shapes out."

    def __init__(
        self,
        dims: tuple[int, ...],
        grid: int,
        heads: int = 4,
        layers: int = 4,
        dropout: float = .1,
    ):
        super().__init__()
        self.tokens = nn.ModuleList()
        for k, dim in enumerate(dims):
            patch = 16//2**k  # the same grid at every level
            self.tokens.append(PatchTokens(dim, patch, grid, dropout))
        in_a_row = [ChannelLayer(dims, heads, dropout) for _ in range(layers)]
        self.layers = nn.Sequential(*in_a_row)
        self.norm = layer_norms(dims)
        self.back = nn.ModuleList(map(project_back, dims))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        "Maps [B, dims[k], H/2^k, W/2^k] of the same shapes."
        grid = [n//16 for n in maps[0].shape[-2:]]
        tokens = [cut(m) for cut, m in zip(self.tokens, maps)]
        out = []
        for m, t, norm, back in zip(maps, self.layers(tokens), self.norm, self.back):
            channels_first = norm(t).transpose(1, 2)
            heard = back(channels_first.unflatten(2, grid))
            out.append(m + F.interpolate(heard, size=m.shape[-2:]))
        return out


# %%
torch.manual_seed(0)
maps = [torch.rand(2, 8*min(2**k, 8), 64//2**k, 48//2**k) for k in range(4)]
t = ChannelTransformer((8, 16, 32, 64), grid=4)
print(
    "maps",
    [tuple(m.shape[1:]) for m in maps],
    "-> tokens",
    [tuple(k(m).shape[1:]) for k, m in zip(t.tokens, maps)],
)
test_eq([m.shape for m in t(maps)], [m.shape for m in maps])
conv, x = nn.Conv2d(8, 8, 1), torch.rand(1, 8, 3, 4)     # the exchange: first convolve, then enlarge
test_close(
    conv(F.interpolate(x, scale_factor=4)).detach(), F.interpolate(conv(x), scale_factor=4).detach(), 1e-6
)


# %% [markdown]
# ## Choosing channels
#
# The decoder has a *channel-wise cross attention* (equations 5 and 6). The mean of each channel of the skip and of the decoder's map decides how much
# of each skip channel comes through. The gate of the [Attention U-Net](30_attunet.ipynb) weighs pixels; this one weighs channels.

# %%
#| export
class ChooseChannels(nn.Module):
    "Weigh the channels of a skip by what both sides have on average (equations 5 and 6)."

    def __init__(self, dim: int):
        super().__init__()
        self.skip = nn.Linear(dim, dim)
        self.below = nn.Linear(dim, dim)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        "The skip [B, C, H, W], weighted; `below` has its shape."
        from_skip = self.skip(skip.mean((2, 3)))
        from_below = self.below(below.mean((2, 3)))
        weight = torch.sigmoid((from_skip + from_below)/2)
        return F.relu(skip*weight[..., None, None])


class UpBlock(nn.Module):
    "A decoder level: enlarge, choose among the skip's channels, join, convolve twice."

    def __init__(self, i: int, o: int):
        super().__init__()
        self.choose = ChooseChannels(i//2)
        self.convs = nn.Sequential(ConvNormReLU(i, o), ConvNormReLU(o, o))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        "[B, i/2, H, W] and a skip [B, i/2, 2H, 2W] -> [B, o, 2H, 2W]."
        x = F.interpolate(x, scale_factor=2)
        chosen = self.choose(skip, x)
        return self.convs(torch.cat([chosen, x], 1))


# %% [markdown]
# Twice the size, and as many channels as were asked for:

# %%
up = UpBlock(16, 4)
out = up(torch.rand(1, 8, 6, 4), torch.rand(1, 8, 12, 8))
print((1, 8, 6, 4), "and", (1, 8, 12, 8), "->", tuple(out.shape))
test_eq(out.shape, (1, 4, 12, 8))


# %% [markdown]
# ## The network

# %%
#| export
def down_level(i: int, o: int) -> nn.Sequential:
    "Half the size and two convolutions: [B, i, H, W] -> [B, o, H/2, W/2]."
    return nn.Sequential(nn.MaxPool2d(2), ConvNormReLU(i, o), ConvNormReLU(o, o))


def up_levels(width: int) -> nn.ModuleList:
    "The four levels of the decoder, from the deepest to full size."
    channels = ((16, 4), (8, 2), (4, 1), (2, 1))
    return nn.ModuleList(UpBlock(i*width, o*width) for i, o in channels)


# %%
print(tuple(down_level(8, 16)(torch.rand(2, 8, 12, 12)).shape))
test_eq(len(up_levels(4)), 4)


# %%
#| export
class UCTransNet(EncoderDecoder):
    "UCTransNet (Wang et al. 2022, arXiv 2109.04335)."
    stride = 16

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 55,
        width: int = 64, # at full resolution
        image_size: int = 224, # of the position embedding
        heads: int = 4, # of the channel transformer
        layers: int = 4,
        dropout: float = .1,
    ):
        super().__init__()
        counts = dict(in_chans=in_chans, out_chans=out_chans, width=width, image_size=image_size)
        check_counts("uctransnet", **counts, heads=heads, layers=layers)
        levels = tuple(width*k for k in (1, 2, 4, 8, 8))
        self.channels = levels
        self.first = ConvNormReLU(in_chans, width)
        self.down = nn.ModuleList(map(down_level, levels, levels[1:]))
        grid = max(image_size//16, 1)
        self.bridge = ChannelTransformer(levels[:4], grid, heads, layers, dropout)
        self.up = up_levels(width)
        self.head = nn.Conv2d(width, out_chans, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        "Features of five levels, 1 to 1/16, of images [B, in_chans, H, W]."
        maps = [self.first(pad_to(x, self.stride))]
        for down in self.down:
            maps.append(down(maps[-1]))
        return [*self.bridge(maps[:4]), maps[4]]

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        "Logits [B, out_chans, *size] from the features of `encode`."
        *skips, x = features
        for up, skip in zip(self.up, reversed(skips)):
            x = up(x, skip)
        return crop_to(self.head(x), size)


# %%
torch.manual_seed(0)
model = UCTransNet(1, 55, width=8)
x = torch.rand(2, 1, 61, 47)
for f in model.encode(x): print("feature", tuple(f.shape))
print("logits ", tuple(model(x).shape))
test_eq([f.shape[1] for f in model.encode(x)], model.channels)

# %% [markdown]
# ## Is it the published network?
#
# The authors' implementation ([McGregorWwww/UCTransNet](https://github.com/McGregorWwww/UCTransNet), commit 493bd81) has 66,430,657 parameters at its published settings (224x224, 3 -> 1
# channels, base 64, patches 16, 8, 4, 2, four heads, four layers). Nearly four fifths of them are in the channel transformer.

# %%
model = UCTransNet(3, 1)
test_eq(count_parameters(model), 66_430_657)
test_eq(count_parameters(model.bridge), 52_374_144)
print(
    f"{count_parameters(UCTransNet(1, 55)):,} parameters for 1 -> 55 channels; "
    f"{count_parameters(UCTransNet(1, 55, width=16)):,} at width 16"
)

# %% [markdown]
# The paper's formula for a layer adds the feed-forward output to the *queries*. Its implementation, and ours, add it to the tokens, as transformers usually do. Theirs ends in a sigmoid when there
# is one class; our models always return logits. The code was written from the paper and these facts; none was copied.
#
# ## Thirty steps, and what the channels ask
#
# Can the network learn four slices by heart? And which channels do its channels attend to?

# %%
images, masks = toy_slices()
torch.manual_seed(0)
model = UCTransNet(1, 4, width=16, image_size=64)
losses, dice = overfit(model, images, masks, lr=.02)
print("Dice: left {:.3f}, right {:.3f}, bright {:.3f}".format(*dice))
assert dice.min() > .9


# %%
#| fig-alt: "Channel attention of four levels: how much each channel attends to the channels of every level"
def channel_maps(model, x):
    "The channel attention of the last layer for each level, averaged over batch and heads."
    maps, att = [], model.bridge.layers[-1].attention
    hook = att.psi.register_forward_hook(lambda m, i, o: maps.append(o.softmax(-1).mean((0, 1))))
    with torch.no_grad(): model.eval()(x)
    hook.remove()
    return maps

maps = channel_maps(model, images)
edges = [0, 16, 48, 112, 240]
fig, ax = plt.subplots(4, 1, figsize=(9, 5.2), gridspec_kw=dict(height_ratios=[1, 1.4, 2, 3]), sharex=True)
for k, (a, m) in enumerate(zip(ax, maps)):
    a.imshow(m*m.shape[1], cmap="viridis", vmin=0, vmax=4, aspect="auto", interpolation="nearest")
    for e in edges[1:-1]: a.axvline(e - .5, color="w", lw=.8)
    a.set(yticks=[])
    a.set_ylabel(f"level {k + 1}", rotation=0, ha="right", va="center")
ax[-1].set(xticks=[(a + b)/2 for a, b in zip(edges, edges[1:])])
ax[-1].set_xticklabels([f"level {k + 1}" for k in range(4)])
ax[-1].set_xlabel("channels of …")
fig.tight_layout()

# %% [markdown]
# A row is a channel that asks, a column a channel that answers; the white lines separate the levels. Bright columns are channels that many others use, and they are not all
# on the same level as the channel that asks. A plain skip connection cannot make this exchange.

# %%
model = UCTransNet(1, 4, width=4)
model(images).square().mean().backward()
# every parameter takes part
test_eq([n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()], [])

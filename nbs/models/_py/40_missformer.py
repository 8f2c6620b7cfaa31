# %% [markdown]
# # MISSFormer
#
# > A U-shaped transformer whose levels exchange information before they are decoded.
#
# - skip_showdoc: true

# %%
#| default_exp models.missformer

# %%
#| export
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctseg.core.errors import InputError
from ctseg.models.base import EncoderDecoder, check_counts, crop_to, pad_to

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_close, test_eq, test_fail

from ctseg.core.toys import toy_slices
from ctseg.models.attunet import AttentionUNet
from ctseg.models.base import count_parameters, overfit

# %% [markdown]
# A convolution looks at nine pixels. To connect the left kidney with the spine it needs many layers. Attention connects everything with everything in one
# layer, but does not know which pixels are neighbours. **MISSFormer** ([Huang et al. 2021](https://arxiv.org/abs/2109.07162)) combines both, with two ideas:
#
# 1. an *enhanced Mix-FFN*: inside each transformer block a small depthwise convolution brings in the neighbours;
# 2. a *context bridge*: the features of all four levels become one long sequence of tokens, attend to each other, and are sorted back into their levels.
#
# It is trained from scratch; no ImageNet weights are involved.

# %%
#| echo: false
#| fig-alt: "MISSFormer: blocks at four levels, joined by a context bridge of tokens, and blocks back up"
fig, ax = plt.subplots(figsize=(9, 3.5))
txt = dict(ha="center", va="center", fontsize=9)
for k, c in enumerate("1 2 5 8".split()):
    y = -k
    ax.text(
        -3.2 + k*.3,
        y,
        f"blocks\n{64*int(c)}",
        bbox=dict(boxstyle="round", fc="#cfe3f5", ec="#4477aa"),
        **txt,
    )
    ax.text(
        3.2 - k*.3,
        y,
        "blocks" if k < 3 else "expand",
        bbox=dict(boxstyle="round", fc="#d8ecd2", ec="#338833"),
        **txt
    )
    ax.annotate("", (-.95, y), (-2.7 + k*.3, y), arrowprops=dict(arrowstyle="->", color="#777777"))
    ax.annotate("", (2.75 - k*.3, y), (.95, y), arrowprops=dict(arrowstyle="->", color="#777777"))
    ax.text(0, y, "□"*int(c) + " tokens", color="#884400", **txt)
    ax.text(5., y, f"1/{4*2**k}", color="#777777", **txt)
    if k < 3:
        ax.annotate("", (-3.2 + (k+1)*.3, y - .72), (-3.2 + k*.3, y - .28), arrowprops=dict(arrowstyle="->"))
        ax.annotate("", (3.2 - k*.3, y - .22), (3.2 - (k+1)*.3, y - .8), arrowprops=dict(arrowstyle="->"))
ax.add_patch(plt.Rectangle((-.95, -3.4), 1.9, 3.8, fc="#fbe2b4", ec="#cc7711", alpha=.5))
ax.text(0, .6, "context bridge, four layers", color="#884400", **txt)
ax.text(-4.4, 0, "image", **txt)
ax.annotate("", (-3.7, 0), (-4.1, 0), arrowprops=dict(arrowstyle="->"))
ax.text(4.4, .5, "x4, logits", **txt)
ax.annotate("", (4.1, .4), (3.65, .1), arrowprops=dict(arrowstyle="->"))
ax.set(xlim=(-4.8, 5.3), ylim=(-3.7, .9))
ax.axis("off")
fig.tight_layout()


# %% [markdown]
# On this page feature maps are `[B, H, W, C]`, with the channels last: linear layers and layer norms act on the last axis, and a sequence of tokens is just another view
# of the same memory. Only for a convolution must the channels move to the front.
#
# ## Attention that can afford an image
#
# An image of 256x256 has 4096 tokens at a quarter of its size, and plain attention is quadratic. *Efficient* attention (from SegFormer) lets every
# pixel ask, but only a reduced image answer: keys and values come from a strided convolution that shrinks the map by `reduce`.

# %%
#| export
def conv_last(conv: nn.Module, x: Tensor) -> Tensor:
    "Apply a convolution to a map `x` [B, H, W, C] whose channels come last."
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    "`[B, N, C]` -> `[B, heads, N, C/heads]`."
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    "Softmax attention of queries [B, N, C] to keys and values stacked as [B, M, 2C]; returns [B, N, C]."
    k, v = kv.chunk(2, -1)
    answers = F.scaled_dot_product_attention(
        split_heads(q, heads),
        split_heads(k, heads),
        split_heads(v, heads),
    )
    return answers.transpose(1, 2).flatten(2)


# %%
torch.manual_seed(0)
q, k, v = torch.rand(1, 12, 8), torch.rand(1, 12, 8), torch.rand(1, 12, 8)
# by hand, for one head of one token: a softmax-weighted mean of the values
w = (q[0, 5, :4] @ k[0, :, :4].T/4**.5).softmax(-1)
answers = attend(q, torch.cat([k, v], -1), 2)
by_hand = w @ v[0, :, :4]
print("token 5, first head:", answers[0, 5, :4].numpy().round(3), "by hand:", by_hand.numpy().round(3))
test_close(answers[0, 5, :4], by_hand, 1e-5)


# %%
#| export
class EfficientAttention(nn.Module):
    "Self-attention of a map [B, H, W, C]; keys and values are reduced by `reduce` along both sides."

    def __init__(self, dim: int, heads: int, reduce: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2*dim)
        self.out = nn.Linear(dim, dim)
        self.reduce = None
        self.norm = None
        if reduce > 1:
            self.reduce = nn.Conv2d(dim, dim, reduce, reduce)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        "A map [B, H, W, C] of the same shape."
        small = x
        if self.reduce is not None:
            small = self.norm(conv_last(self.reduce, x))
        q = self.q(x).flatten(1, 2)
        kv = self.kv(small).flatten(1, 2)
        answers = attend(q, kv, self.heads)
        return self.out(answers).view_as(x)


# %%
x = torch.rand(2, 16, 8, 32)
for reduce in (1, 4):
    attention = EfficientAttention(32, heads=2, reduce=reduce)
    print(f"reduced by {reduce}: {16*8} queries, {16*8//reduce**2} keys")
    test_eq(attention(x).shape, x.shape)


# %% [markdown]
# ## The enhanced Mix-FFN
#
# The usual feed-forward layer treats every token alone. Here (the paper's equation 4) a 3x3 depthwise convolution adds information from the neighbours to the token's
# own, and the sum is normalised before the nonlinearity:
#
# $$y = \mathrm{LN}\big(\mathrm{DWConv}(\mathrm{FC}(x)) + \mathrm{FC}(x)\big), \qquad \mathrm{out} = \mathrm{FC}(\mathrm{GELU}(y))$$
#
# The zero padding of this convolution also tells a token where it is. So the network needs no position embedding, and takes any image size.

# %%
#| export
class EnhancedMixFFN(nn.Module):
    "Feed-forward layer of a map [B, H, W, C] with a depthwise convolution inside (equation 4)."

    def __init__(self, dim: int):
        super().__init__()
        wide = 4*dim
        self.fc1 = nn.Linear(dim, wide)
        self.fc2 = nn.Linear(wide, dim)
        self.norm = nn.LayerNorm(wide)
        self.near = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)

    def forward(self, x: Tensor) -> Tensor:
        "A map [B, H, W, C] of the same shape."
        x = self.fc1(x)
        neighbours = conv_last(self.near, x)
        mixed = self.norm(neighbours + x)
        return self.fc2(F.gelu(mixed))


class TransformerBlock(nn.Module):
    "Attention, then Mix-FFN, each after a layer norm and beside a skip."

    def __init__(self, dim: int, heads: int, reduce: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = EfficientAttention(dim, heads, reduce)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = EnhancedMixFFN(dim)

    def forward(self, x: Tensor) -> Tensor:
        "A map [B, H, W, C] of the same shape."
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


# %%
torch.manual_seed(0)
block = TransformerBlock(32, heads=2, reduce=4)
print(f"{count_parameters(block):,} parameters")
test_eq(block(torch.rand(2, 16, 8, 32)).shape, (2, 16, 8, 32))


# %% [markdown]
# ## A level of the encoder
#
# Patches overlap (a 7x7 convolution with stride 4 at first, then 3x3 with stride 2), so that no seam runs between them.

# %%
#| export
class Stage(nn.Module):
    "Shrink a map with overlapping patches, then transform it: [B, H, W, i] -> [B, H/stride, W/stride, o]."

    def __init__(self, i: int, o: int, stride: int, heads: int, reduce: int):
        super().__init__()
        kernel = 7 if stride == 4 else 3
        self.patch = nn.Conv2d(i, o, kernel, stride, kernel//2)
        self.norm_in = nn.LayerNorm(o)
        blocks = [TransformerBlock(o, heads, reduce) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.norm_out = nn.LayerNorm(o)

    def forward(self, x: Tensor) -> Tensor:
        "[B, H, W, i] -> [B, H/stride, W/stride, o]."
        tokens = self.norm_in(conv_last(self.patch, x))
        return self.norm_out(self.blocks(tokens))


# %% [markdown]
# A stage with stride 4 makes maps of a quarter of the size.

# %%
stage = Stage(1, 16, stride=4, heads=1, reduce=8)
out = stage(torch.rand(1, 64, 32, 1))
print((1, 64, 32, 1), "->", tuple(out.shape))
test_eq(out.shape, (1, 16, 8, 16))


# %% [markdown]
# ## The context bridge
#
# The levels have 64, 128, 320 and 512 channels (1, 2, 5 and 8 times the first). So a pixel of the second level is cut into two tokens of 64 numbers, one of the third into
# five, and so on: every token has the same length, and all levels fit into one sequence. Every token is a query. Keys and values come from reduced levels (by 8, 4, 2 and 1, so
# that each level contributes from the same coarse grid). After the attention the tokens return to their levels, where a Mix-FFN of their own width follows.

# %%
#| export
def to_tokens(maps: list[Tensor], width: int) -> Tensor:
    "Maps [B, h, w, c] as one sequence of tokens [B, N, width]."
    return torch.cat([m.flatten(1).unflatten(1, (-1, width)) for m in maps], 1)


def sort_back(tokens: Tensor, like: list[Tensor]) -> list[Tensor]:
    "The sequence [B, N, width] cut up again into maps of the shapes of `like`."
    width = tokens.shape[-1]
    lengths = [m.shape[1]*m.shape[2]*(m.shape[3]//width) for m in like]
    parts = tokens.split(lengths, 1)
    return [part.reshape(m.shape) for part, m in zip(parts, like)]


# %%
maps = [torch.rand(2, 16//2**k, 24//2**k, 8*t) for k, t in enumerate((1, 2, 5, 8))]
print("maps", [tuple(m.shape[1:]) for m in maps], "-> tokens", tuple(to_tokens(maps, 8).shape))
# nothing gets lost or mixed up
for m, back in zip(maps, sort_back(to_tokens(maps, 8), maps)): test_eq(m, back)

# %%
#| export
TIMES = 1, 2, 5, 8 # the channels of each level, in those of the first

class BridgeLayer(nn.Module):
    "Attention among the tokens of all levels, then a Mix-FFN for each level."

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.norm1 = nn.LayerNorm(width)
        self.norm_small = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2*width)
        self.out = nn.Linear(width, width)
        self.reduce = nn.ModuleList()
        for t, r in zip(TIMES, (8, 4, 2)):
            channels = width*t
            self.reduce.append(nn.Conv2d(channels, channels, r, r))
        self.norm2 = nn.LayerNorm(width)
        self.ffn = nn.ModuleList(EnhancedMixFFN(width*t) for t in TIMES)

    def attention(self, maps: list[Tensor]) -> Tensor:
        "What attention adds to the tokens of normalised maps, out of the reduced levels: [B, N, width]."
        reduced = [conv_last(r, m) for r, m in zip(self.reduce, maps)]
        small = to_tokens([*reduced, maps[3]], self.width)
        q = self.q(to_tokens(maps, self.width))
        kv = self.kv(self.norm_small(small))
        return self.out(attend(q, kv, heads=1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        "Maps [B, h, w, c] of the same shapes."
        x = to_tokens(maps, self.width)
        normed = sort_back(self.norm1(x), maps)
        x = x + self.attention(normed)
        normed = sort_back(self.norm2(x), maps)
        mixed = [ffn(m) for ffn, m in zip(self.ffn, normed)]
        x = x + to_tokens(mixed, self.width)
        return sort_back(x, maps)


# %% [markdown]
# The bridge mixes four levels and gives each back in its own shape.

# %%
bridge = BridgeLayer(8)
print([tuple(m.shape[1:]) for m in bridge(maps)])
test_eq([m.shape for m in bridge(maps)], [m.shape for m in maps])


# %% [markdown]
# ## Up again
#
# *Patch expanding* is the opposite of patch merging: a linear layer makes more channels, which are then laid out as pixels.

# %%
#| export
class PatchExpand(nn.Module):
    "Enlarge a map by a linear layer and rearranging: [B, H, W, dim] -> [B, s·H, s·W, out]."

    def __init__(self, dim: int, out: int, scale: int):
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, out*scale**2, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        "[B, H, W, dim] -> [B, s·H, s·W, out]."
        b, h, w, _ = x.shape
        s = self.scale
        pixels = self.expand(x).view(b, h, w, s, s, -1)
        in_rows = pixels.permute(0, 1, 3, 2, 4, 5)
        return self.norm(in_rows.reshape(b, h*s, w*s, -1))


# %%
print(tuple(PatchExpand(8, 4, 2)(torch.rand(1, 3, 5, 8)).shape))


# %%
#| export
class Merge(nn.Module):
    "A decoder level: join what comes from below with the skip, transform, enlarge."

    def __init__(self, below: int, dim: int, heads: int, reduce: int, out: int, scale: int = 2):
        super().__init__()
        self.join = nn.Linear(below + dim, dim)
        blocks = [TransformerBlock(dim, heads, reduce) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.expand = PatchExpand(dim, out, scale)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        "[B, H, W, below] and [B, H, W, dim] -> [B, scale·H, scale·W, out]."
        joined = self.join(torch.cat([x, skip], -1))
        return self.expand(self.blocks(joined))


# %% [markdown]
# The map from below is enlarged to the size of its neighbour.

# %%
merge = Merge(below=16, dim=8, heads=1, reduce=2, out=4)
out = merge(torch.rand(1, 4, 6, 16), torch.rand(1, 4, 6, 8))
print((1, 4, 6, 16), "and", (1, 4, 6, 8), "->", tuple(out.shape))
test_eq(out.shape, (1, 8, 12, 4))


# %% [markdown]
# ## First weights
#
# A transformer trained from scratch depends much on its first weights. We use those of SegFormer, whose encoder MISSFormer takes over: small numbers in linear layers, and
# convolutions scaled by their number of outputs. With PyTorch's defaults the thirty steps at the end of this page get nowhere.

# %%
#| export
def init_transformer(module: nn.Module) -> None:
    "First weights of a linear layer or a convolution: normal with deviation .02, or sqrt(2/fan_out). For `model.apply`."
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=.02)
    elif isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        fan_out = module.out_channels*height*width
        deviation = (2*module.groups/fan_out)**.5
        nn.init.normal_(module.weight, 0, deviation)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


# %%
layer = nn.Linear(256, 256)
before = layer.weight.std().item()
init_transformer(layer)
print(f"deviation {before:.3f} by PyTorch's default, {layer.weight.std():.3f} now")

# %% [markdown]
# ## The network

# %%
#| export
HEADS = (1, 2, 5, 8)  # of the attention at each level; the channels grow alike


def encoder_stages(in_chans: int, channels: tuple[int, ...]) -> nn.ModuleList:
    "The four stages of the encoder, to 1/4, 1/8, 1/16 and 1/32 of the size."
    inputs = (in_chans, *channels[:-1])
    strides = (4, 2, 2, 2)
    reduce = (8, 4, 2, 1)
    return nn.ModuleList(map(Stage, inputs, channels, strides, HEADS, reduce))


# %%
level = torch.rand(1, 64, 64, 1)
for stage in encoder_stages(1, (8, 16, 40, 64)):
    level = stage(level)
    print(tuple(level.shape))


# %%
#| export
def decoder_levels(width: int) -> nn.ModuleList:
    "The three levels of the decoder above the deepest; the last enlarges by four."
    return nn.ModuleList([
        Merge(4*width, 5*width, 5, 2, 5*width//2),
        Merge(5*width//2, 2*width, 2, 4, width),
        Merge(width, width, 1, 8, width, scale=4),
    ])


def check_even(width: int) -> None:
    "`InputError` for an odd width."
    if not width % 2:
        return
    why = "patch expanding halves it"
    raise InputError(f"missformer: width is {width}, expected an even number ({why})")


# %%
for level in decoder_levels(8): print(level.join)
try: check_even(5)
except InputError as e: print(e)


# %%
#| export
class MISSFormer(EncoderDecoder):
    "MISSFormer (Huang et al. 2021, arXiv 2109.07162)."
    stride = 32

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 55,
        width: int = 64, # of the finest level, even
        bridge: int = 4, # its layers
    ):
        super().__init__()
        check_counts("missformer", in_chans=in_chans, out_chans=out_chans, width=width)
        check_even(width)
        self.channels = tuple(width*h for h in HEADS)
        self.stages = encoder_stages(in_chans, self.channels)
        layers = (BridgeLayer(width) for _ in range(bridge))
        self.bridge = nn.Sequential(*layers)
        self.deepest = PatchExpand(8*width, 4*width, 2)
        self.merges = decoder_levels(width)
        self.head = nn.Conv2d(width, out_chans, 1)
        self.apply(init_transformer)

    def encode(self, x: Tensor) -> list[Tensor]:
        "Four levels of features, 1/4 to 1/32 in size, of images [B, in_chans, H, W]."
        maps = []
        x = pad_to(x, self.stride).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [m.permute(0, 3, 1, 2) for m in self.bridge(maps)]

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        "Logits [B, out_chans, *size] from the features of `encode`."
        *skips, x = [f.permute(0, 2, 3, 1) for f in features]
        x = self.deepest(x)
        for merge, skip in zip(self.merges, reversed(skips)):
            x = merge(x, skip)
        logits = conv_last(self.head, x).permute(0, 3, 1, 2)
        return crop_to(logits, size)


# %%
torch.manual_seed(0)
model = MISSFormer(1, 55, width=16)
x = torch.rand(2, 1, 61, 47)
for f in model.encode(x): print("feature", tuple(f.shape))
print("logits ", tuple(model(x).shape))
test_eq([f.shape[1] for f in model.encode(x)], model.channels)

# %% [markdown]
# ## Is it the published network?
#
# The authors' implementation ([ZhifangDeng/MISSFormer](https://github.com/ZhifangDeng/MISSFormer), commit 007424e) has 42,462,537 parameters at its published settings (224x224,
# 3 -> 9 channels). Ours has 35,452,745. The whole difference is parameters *that never take part*: a backward pass through theirs leaves
# 7,009,792 parameters without a gradient.
#
# | in the authors' code, but never called | parameters |
# |---|---|
# | the lowest decoder level owns a join layer and two transformer blocks, but its forward pass only expands | 6,876,672 |
# | every Mix-FFN owns three layer norms, but its forward pass uses only the first | 133,120 |

# %%
test_eq(count_parameters(MISSFormer(3, 9)), 42_462_537 - 7_009_792)
test_eq(6_876_672 + 133_120, 7_009_792)
print(f"{count_parameters(MISSFormer(1, 55)):,} parameters for 1 -> 55 channels")


# %% [markdown]
# Two more differences do not change the count. Their network repeats a grey image three times; ours has one input channel. And where their bridge reduces a level, it
# cuts keys and values into tokens along another axis than the queries; here both are cut alike. The code was written from the paper and these facts; none was copied.
#
# ## What does a pixel see?
#
# The gradient of one output pixel with respect to the image shows what that pixel looks at. Before any training, a pixel of a convolutional network looks mostly at its
# surroundings, although the deepest level could tell it more. A pixel of the transformer already sees all of the image.

# %%
#| fig-alt: "What an output pixel looks at: its surroundings in the Attention U-Net, all of it in MISSFormer"
def field(model, size=128, n=8):
    "Mean absolute gradient of the logits at the centre, over random images."
    torch.manual_seed(0)
    x = torch.rand(n, 1, size, size, requires_grad=True)
    model(x)[:, :, size//2, size//2].sum().backward()
    return x.grad.abs().mean((0, 1))

torch.manual_seed(0)
fig, ax = plt.subplots(1, 2, figsize=(6.2, 3))
for a, (name, m) in zip(
    ax, {"Attention U-Net": AttentionUNet(1, 4, 8), "MISSFormer": MISSFormer(1, 4, 8)}.items()
):
    f = field(m.eval())
    a.imshow((f/f.max() + 1e-7).log10(), cmap="magma", vmin=-5, vmax=0)
    a.set_title(name, fontsize=10)
    a.axis("off")
    print(
        f"{name}: {100*f[44:84, 44:84].sum()/f.sum():.0f} % of the gradient lies in the middle tenth of the "
        f"image"
    )
fig.tight_layout()

# %% [markdown]
# ## Thirty steps
#
# Can the network learn four slices by heart? A transformer from scratch learns more slowly than a convolutional network, and draws edges at a quarter of the image's size. It
# needs a smaller learning rate and a little more width.

# %%
images, masks = toy_slices()
torch.manual_seed(0)
losses, dice = overfit(MISSFormer(1, 4, width=32), images, masks, lr=.0025)
print("Dice: left {:.3f}, right {:.3f}, bright {:.3f}; mean {:.3f}".format(*dice, dice.mean()))
assert dice.mean() > .9

# %%
model = MISSFormer(1, 4, width=4)
model(images).square().mean().backward()
# every parameter takes part
test_eq([n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()], [])
test_fail(lambda: MISSFormer(width=7), contains="even number")

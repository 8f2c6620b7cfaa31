# %% [markdown]
# # nnU-Net
#
# > nnU-Net's own network, planned by its rules, under the same contract as all others.
#
# - skip_showdoc: true

# %%
#| default_exp models.nnunet

# %%
#| export
from typing import Any

import torch
from torch import nn

from ctseg.core.optional import import_zoo
from ctseg.models.base import EncoderDecoder, check_counts, crop_to, pad_to

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_eq

from ctseg.core.toys import toy_slices
from ctseg.models.base import count_parameters, overfit

# %% [markdown]
# [nnU-Net](https://doi.org/10.1038/s41592-020-01008-z) (Isensee et al. 2021) claims that a plain U-Net is enough if everything around it fits the data, and its record in challenges supports that. "Fits" means
# *rules*: a few lines of arithmetic turn the size of the images into the depth of the network. This notebook states those rules for 2D images and builds the network with nnU-Net's own
# building blocks, the package [dynamic-network-architectures](https://github.com/MIC-DKFZ/dynamic-network-architectures), so what is trained here is the very network that nnU-Net trains.
#
# nnU-Net is more than this network: resampling, augmentation, a schedule of a thousand epochs. These are not here. To compare with the whole of it, `ctseg export nnunet` writes
# a data set on which you can run the real nnU-Net.

# %% [markdown]
# ## The rules
#
# 1. Halve an axis as long as what remains has at least 4 pixels. If only *one* axis is left to halve, stop unless it still has 12: a map that is shrunk one way only
#    is not worth much.
# 2. Every level has 3x3 convolutions; the channels double from 32 at each level, up to 512.
# 3. Two convolutions a level, instance normalisation (batches may be small), leaky ReLU; halving by strided convolution, doubling by transposed convolution.
#
# nnU-Net plans for square pixels of equal spacing exactly like this (`get_pool_and_conv_props` and `ExperimentPlanner`, commit 0e49508, read for the rules). It then shrinks its *patch*
# until a batch fits in memory. Slices up to 512x512 fit without that, and here an image is always taken whole.

# %%
#| export
SHORTEST = 4 # no side of the deepest map is shorter than this

def plan_2d(
    size: tuple[int, int], # height and width of the images
) -> list[tuple[int, int]]: # strides of each level, the first (1, 1)
    "How nnU-Net's planner would shrink an image of this size, level by level."
    now, spacing, strides = list(size), [1, 1], [(1, 1)]
    while True:
        long_enough = [i for i in (0, 1) if now[i] >= 2*SHORTEST]
        # pixels that became long wait for the others
        axes = [i for i in long_enough if spacing[i] < 2*min(spacing[j] for j in long_enough)]
        if not axes or (len(axes) == 1 and now[axes[0]] < 3*SHORTEST):
            return strides
        strides.append(tuple(2 if i in axes else 1 for i in (0, 1)))
        for i in axes:
            now[i] = -(-now[i]//2)
            spacing[i] = 2*spacing[i]


# %%
for size in (256, 256), (512, 512), (192, 256), (64, 64), (320, 40):
    print(size, "->", len(plan_2d(size)), "levels,", plan_2d(size)[1:])
test_eq(plan_2d((256, 256)), [(1, 1)] + [(2, 2)]*6)     # as in nnU-Net's published plans for 256x256 slices
test_eq(plan_2d((512, 512)), [(1, 1)] + [(2, 2)]*7)

# %%
#| echo: false
#| fig-alt: "The seven levels planned for 256 by 256 pixels, with their sides and channels"
fig, ax = plt.subplots(figsize=(8, 2.6))
for k, (w, side) in enumerate(zip((32, 64, 128, 256, 512, 512, 512), (256, 128, 64, 32, 16, 8, 4))):
    h = .35 + .28*(side/256)**.5*4
    ax.add_patch(plt.Rectangle((k, -h/2), .2 + .3*w/512, h, fc="#cfe3f5", ec="#4477aa"))
    ax.text(k + .1 + .15*w/512, -h/2 - .16, f"{side}²\n{w}", ha="center", va="top", fontsize=8)
    if k: ax.annotate("", (k - .04, 0), (k - .4, 0), arrowprops=dict(arrowstyle="->", color="#777777"))
ax.set(xlim=(-.1, 7.2), ylim=(-1.5, .8))
ax.axis("off")
ax.set_title("the plan for 256x256: seven levels (side and channels)", fontsize=10)
fig.tight_layout()

# %% [markdown]
# ## The network
#
# The plain network and the newer residual encoder ("ResEnc" in nnU-Net, with 1, 3, 4, 6, 6 … residual blocks a level and one convolution a level in the decoder) share the wrapper.
#
# **Deep supervision**: with `deep_supervision` set, training mode answers with a list of logits from full size down, which `deep_supervised` (in [base](10_base.ipynb)) turns into one loss.
# In evaluation mode, and when it is off, there is one tensor, as for any other network. It may be switched on the finished model: `model.deep_supervision = True`.

# %%
#| export
PLAIN = "PlainConvUNet"
RESIDUAL = "ResidualEncoderUNet"


def build_network(
    kind: str,
    in_chans: int,
    out_chans: int,
    strides: list[tuple[int, int]],
    width: int,
) -> Any: # a module of that package, which tells nothing of its types
    "The network `PLAIN` or `RESIDUAL` of dynamic-network-architectures with the settings of nnU-Net's planner."
    model = "nnunet" if kind == PLAIN else "nnunet-resenc"
    arch = import_zoo("dynamic_network_architectures.architectures.unet", model)
    n = len(strides)
    common = dict(
        input_channels=in_chans,
        num_classes=out_chans,
        n_stages=n,
        features_per_stage=[min(width*2**i, 16*width) for i in range(n)],
        strides=strides,
        kernel_sizes=[(3, 3)]*n,
        conv_op=nn.Conv2d,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs=dict(eps=1e-5, affine=True),
        nonlin=nn.LeakyReLU,
        nonlin_kwargs=dict(inplace=True),
        deep_supervision=True,
    )
    if kind == PLAIN:
        return arch.PlainConvUNet(n_conv_per_stage=[2]*n, n_conv_per_stage_decoder=[2]*(n - 1), **common)
    blocks = [1, 3, 4, *[6]*n][:n]
    return arch.ResidualEncoderUNet(n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[1]*(n - 1), **common)


# %%
net = build_network(PLAIN, 1, 4, plan_2d((64, 64)), width=8)
print(type(net).__name__, "with", len(net.encoder.stages), "levels,", f"{count_parameters(net):,} parameters")


# %%
#| export
def drop_twins(net: nn.Module) -> None:
    "Each block of the package holds its layers twice, by name and in `all_modules`; a state dict needs them once."
    for module in net.modules():
        if not hasattr(module, "all_modules"):
            continue
        for twin in ("conv", "norm", "nonlin"):
            module.__dict__["_modules"].pop(twin, None)


# %%
before = len(net.state_dict())
drop_twins(net)
print(before, "names,", len(net.state_dict()), "without the twins")


# %% [markdown]
# The package's encoder and decoder keep the contract of every network here. With deep supervision the decoder answers at several sizes in training, and each answer is cropped in proportion.

# %%
#| export
class PlannedUNet(EncoderDecoder):
    "The contract of a network, kept with an `encoder` and a `decoder` of dynamic-network-architectures."
    memory_format = torch.contiguous_format  # instance norms would rearrange the map, each time
    deep_supervision = False
    encoder: Any  # of that package; so are its attributes
    decoder: Any

    @property
    def head(self) -> nn.Conv2d:
        "The last convolution, at full size."
        return self.decoder.seg_layers[-1]

    @property
    def heads(self) -> list[nn.Conv2d]:
        "The last convolutions of all sizes."
        return list(self.decoder.seg_layers)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        "Features of all levels of images [B, in_chans, H, W], fine to coarse."
        return self.encoder(pad_to(x, self.stride))

    def decode(
        self, features: list[torch.Tensor], size: tuple[int, int],
    ) -> torch.Tensor | list[torch.Tensor]:
        "Logits [B, out_chans, *size]; a list of them, fine to coarse, in training with deep supervision."
        several = self.training and self.deep_supervision
        self.decoder.deep_supervision = several
        out = self.decoder(features)
        if not several:
            return crop_to(out, size)
        full = out[0].shape[-2:]
        sizes = [[-(-n*s//f) for n, s, f in zip(size, z.shape[-2:], full)] for z in out]
        return [crop_to(z, small) for z, small in zip(out, sizes)]


# %%
#| export
class NNUNet(PlannedUNet):
    "nnU-Net's plain U-Net (Isensee et al. 2021), planned for `image_size`. Needs `ctseg[zoo]`."
    name = "nnunet"
    kind = PLAIN

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 55,
        width: int = 32, # channels at full resolution; at most 16 times as many below
        image_size: int | tuple[int, int] = 256, # what the depth is planned for
        deep_supervision: bool = False, # in training mode, answer with a list of logits at several sizes
    ):
        super().__init__()
        height, breadth = (image_size, image_size) if isinstance(image_size, int) else image_size
        counts = dict(in_chans=in_chans, out_chans=out_chans, width=width)
        check_counts(self.name, **counts, image_height=height, image_width=breadth)
        self.strides = plan_2d((max(height, 8), max(breadth, 8)))
        net = build_network(self.kind, in_chans, out_chans, self.strides, width)
        self.encoder, self.decoder = net.encoder, net.decoder
        self.decoder.encoder = None  # a second reference to the encoder; one is enough in a state dict
        drop_twins(self)
        self.encoder.return_skips = True
        self.deep_supervision = deep_supervision
        self.channels = tuple(net.encoder.output_channels)
        self.stride = tuple(2**sum(s[i] == 2 for s in self.strides) for i in (0, 1))


# %%
print(NNUNet(1, 55, width=8, image_size=64).strides)


# %%
#| export
class NNUNetResEnc(NNUNet):
    "nnU-Net's residual-encoder U-Net (Isensee et al. 2024, arXiv 2404.09556). Needs `ctseg[zoo]`."
    name = "nnunet-resenc"
    kind = RESIDUAL


# %%
torch.manual_seed(0)
model = NNUNet(1, 55, width=8, image_size=64)
x = torch.rand(2, 1, 61, 47)
for f in model.encode(x): print("feature", tuple(f.shape))
print("logits ", tuple(model(x).shape))
model.deep_supervision = True
print("deep   ", [tuple(z.shape[-2:]) for z in model.train()(x)])
test_eq(model.eval()(x).shape, (2, 55, 61, 47))
test_eq([f.shape[1] for f in model.encode(x)], list(model.channels))

# %% [markdown]
# ## Is it nnU-Net's network?
#
# It *is* nnU-Net's code, so only the settings can go wrong. We compare them with a plan that nnU-Net itself wrote for 256x256 slices (`nnUNetv2_plan_experiment`,
# configuration `2d`: seven levels, channels 32 to 512, strides 2, two convolutions a level, bias, affine instance normalisation).

# %%
plain, resenc = NNUNet(1, 55), NNUNetResEnc(1, 55)
print(f"nnunet        {count_parameters(plain):11,} parameters, channels {plain.channels}")
print(f"nnunet-resenc {count_parameters(resenc):11,} parameters, channels {resenc.channels}")
test_eq(plain.channels, (32, 64, 128, 256, 512, 512, 512))

# %% [markdown]
# ## Thirty steps
#
# Can the network learn four slices by heart?

# %%
images, masks = toy_slices()
torch.manual_seed(0)
model = NNUNet(1, 4, width=8, image_size=64)
losses, dice = overfit(model, images, masks, lr=.02)
print("Dice: left {:.3f}, right {:.3f}, bright {:.3f}".format(*dice))
assert dice.min() > .9

# %% [markdown]
# Every weight takes part in training: with deep supervision none is left without a gradient.

# %%
for make in NNUNet, NNUNetResEnc:
    model = make(1, 4, width=4, image_size=64, deep_supervision=True).train()
    sum(z.square().mean() for z in model(images)).backward()
    test_eq([n for n, p in model.named_parameters() if p.grad is None], [])   # every parameter takes part

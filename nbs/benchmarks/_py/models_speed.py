# %% [markdown]
# # Models: time and memory of a training step
#
# > Our Attention U-Net beside MONAI's, our nnU-Net beside the network nnU-Net itself builds, in one run, as ratios.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Do our networks cost more time or memory than those of MONAI and nnU-Net?
#
# **Answer.** No. At about the same number of parameters our Attention U-Net takes 0.98 to 1.02 times the time of MONAI's for a training step, with seven tenths of its memory, and our nnU-Net costs what nnU-Net's own network does. That is on an Intel Xeon with AMX, in float32; on an earlier processor the first was 0.97 to 1.09.
#
# ## How it was measured
#
# Absolute times on a shared machine mean little. So every pair is timed *alternately* in the same run: ours, theirs, ours, theirs, and the fastest step of each counts. Memory is measured in a fresh process each, because
# an allocator that has once grown does not shrink.
#
# MONAI and nnU-Net are not needed by `ctseg`; the notebook compares against those that are installed.

# %%
import importlib.util, subprocess, sys, time

import pandas as pd
import torch

from ctseg.core.device import describe_processor
from ctseg.models import create_model
from ctseg.models.base import count_parameters
from ctseg.core.optional import import_timm
from ctseg.models.costs import multiply_adds

# %%
torch.set_num_threads(1)
torch.manual_seed(0)
import_timm()
print(f"torch {torch.__version__}, one thread, {describe_processor()}")
have = {m: importlib.util.find_spec(m) is not None for m in ("monai", "nnunetv2")}
size, width, classes = 128, 32, 55


# %% [markdown]
# MONAI's `AttentionUnet` with the same five levels and channels (32 to 512) is a smaller network: its decoder has one convolution a level where the paper's (and ours) has two, and it upsamples by 3x3 transposed convolutions. So it is
# compared three times: at the same channels, where ours does a third more arithmetic, and twice at about the same number of parameters, with ours made narrower and with theirs made wider. (30 and 34 channels suit a processor's vectors
# less well than 32; the truth lies between the two.) All models run in channels-last memory, as ctseg's training loop runs them.

# %%
def ours_attention(): return create_model("attunet", 1, classes, width=width)
def ours_narrower(): return create_model("attunet", 1, classes, width=30)

def monai_attention():
    from monai.networks.nets import AttentionUnet
    return AttentionUnet(
        spatial_dims=2,
        in_channels=1,
        out_channels=classes,
        channels=[width*2**k for k in range(5)],
        strides=[2]*4,
    )

def monai_wider():
    from monai.networks.nets import AttentionUnet
    return AttentionUnet(
        spatial_dims=2,
        in_channels=1,
        out_channels=classes,
        channels=[34*2**k for k in range(5)],
        strides=[2]*4,
    )

def ours_nnunet(): return create_model("nnunet", 1, classes, image_size=size, deep_supervision=True)

def nnunet_itself():
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from ctseg.models.nnunet import plan_2d
    strides = plan_2d((size, size))
    n = len(strides)
    kw = dict(
        n_stages=n,
        features_per_stage=[min(32*2**i, 512) for i in range(n)],
        conv_op="torch.nn.modules.conv.Conv2d",
        kernel_sizes=[[3, 3]]*n,
        strides=[list(s) for s in strides],
        n_conv_per_stage=[2]*n,
        n_conv_per_stage_decoder=[2]*(n - 1),
        conv_bias=True,
        norm_op="torch.nn.modules.instancenorm.InstanceNorm2d",
        norm_op_kwargs=dict(eps=1e-5, affine=True),
        dropout_op=None,
        dropout_op_kwargs=None,
        nonlin="torch.nn.LeakyReLU",
        nonlin_kwargs=dict(inplace=True),
    )
    return get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        kw,
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
        1,
        classes,
        deep_supervision=True,
    )

PAIRS = {
    "attunet / MONAI AttentionUnet, same channels": ("monai", ours_attention, monai_attention),
    "attunet of 30 channels / MONAI AttentionUnet": ("monai", ours_narrower, monai_attention),
    "attunet / MONAI AttentionUnet of 34 channels": ("monai", ours_attention, monai_wider),
    "nnunet / nnU-Net itself": ("nnunetv2", ours_nnunet, nnunet_itself),
}


# %%
def step(model, opt, x):
    out = model(x)
    loss = sum(z.square().mean() for z in (out if isinstance(out, (list, tuple)) else [out]))
    opt.zero_grad()
    loss.backward()
    opt.step()

def alternate(makes, batch=4, rounds=6):
    "The fastest training step of each of several models, timed in turn."
    x, runs = torch.rand(batch, 1, size, size), []
    for make in makes:
        torch.manual_seed(0)
        m = make().to(memory_format=torch.channels_last).train()
        runs.append((m, torch.optim.AdamW(m.parameters())))
        step(*runs[-1], x)
    best = [float("inf")]*len(runs)
    for _ in range(rounds):
        for i, r in enumerate(runs):
            t = time.process_time()
            step(*r, x)
            best[i] = min(best[i], time.process_time() - t)
    return best, [count_parameters(m) for m, _ in runs], [multiply_adds(make(), size) for make in makes]


# %% [markdown]
# Processor time, one thread, so that other work on the machine disturbs little.

# %%
rows = []
for name, (needs, ours, theirs) in PAIRS.items():
    if not have[needs]:
        print(f"{needs} is not installed: {name} left out")
        continue
    (a, b), (pa, pb), (ma, mb) = alternate([ours, theirs])
    rows.append((name, pa, pb, ma/mb, a/b))
speed = pd.DataFrame(
    rows,
    columns=["ours / theirs", "parameters, ours", "parameters, theirs", "multiply-adds ratio", "time ratio"],
)
speed.style.set_uuid("speed").format(
    {"time ratio": "{:.2f}", "multiply-adds ratio": "{:.2f}"}, thousands=","
).hide(axis="index")

# %% [markdown]
# Memory: the peak of a training step beyond what was there before, each in its own process.

# %%
code = """
import sys; sys.path[:0] = {path}
import torch; torch.set_num_threads(1)
from ctseg.core.optional import import_timm; import_timm()
from ctseg.models.costs import PeakMemory
src = {src!r}
ns = dict()
exec(src, ns)
x = torch.rand(4, 1, {size}, {size})
warm = torch.nn.Conv2d(1, 8, 3); warm(x).sum().backward()
with PeakMemory("cpu") as peak:
    m = ns[{fn!r}]().to(memory_format=torch.channels_last).train(); opt = torch.optim.AdamW(m.parameters())
    for _ in range(2): ns["step"](m, opt, x)
print(peak.mb)
"""

def memory(fn):
    import inspect
    src = "\n".join(
        [
            "from ctseg.models import create_model",
            f"size, width, classes = {size}, {width}, {classes}",
            inspect.getsource(fn),
            inspect.getsource(step),
        ]
    )
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code.format(path=[p for p in sys.path if p], src=src, size=size, fn=fn.__name__),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout.split()[-1])

rows = [(name, memory(ours)/memory(theirs)) for name, (needs, ours, theirs) in PAIRS.items() if have[needs]]
pd.DataFrame(rows, columns=["ours / theirs", "memory ratio"]).style.format({"memory ratio": "{:.2f}"}).hide(
    axis="index"
)

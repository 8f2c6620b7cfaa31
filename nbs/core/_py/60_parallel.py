# %% [markdown]
# # Several processes
#
# > Two cards, or twenty, must learn what one would have learnt: what is shared out, what is gathered, and who writes.
#
# - skip_showdoc: true

# %%
#| default_exp core.parallel

# %%
#| export
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ctseg.core.errors import InputError
from ctseg.core.optional import import_timm

# %%
#| hide
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from fastcore.test import test_close, test_eq
from torch import nn


# %% [markdown]
# PyTorch uses several cards with one *process* a card. Each process holds the whole network and works on its share of a batch, and the gradients are averaged (`DistributedDataParallel`, started by `torchrun` or `accelerate launch`). Averaging is right when the loss is a mean over images. Ours is not, and three more things differ quietly:
#
# | what differs | because | what we do |
# |---|---|---|
# | the Dice over the batch | a ratio of sums is not the mean of ratios | the sums of all images, a few numbers each, are gathered; every process computes the same, whole loss |
# | BatchNorm | each process sees the statistics of its own share | synchronised: the statistics are those of the whole batch |
# | random numbers | each process draws its own | every process draws those of the whole batch and takes its share |
# | pseudo-labels | rounding differs between cards | each process labels a share, and all take the collection |
#
# With that, two processes with 8 images each do what one does with 16, up to rounding. (`tests/training` holds the losses of every method against each other. In float32 another order of a sum is enough for two runs to drift apart slowly: where a gradient is zero but for rounding, Adam divides the rounding by itself.) One thing stays apart: dropout *inside* a network is drawn by each process for itself, with the same distribution but not the same numbers.
#
# ## Who am I
#
# Everything below also works without any of it: one process, number 0.

# %%
#| export
def world() -> int:
    "How many processes train together."
    together = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1

def rank() -> int:
    "The number of this process; 0 writes the files."
    return dist.get_rank() if world() > 1 else 0

def sending_device() -> torch.device:
    "Where a tensor must be to be sent: NCCL sends from cards only."
    if dist.get_backend() != "nccl": return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


# %% [markdown]
# A notebook is one process with the number 0.

# %%
print(f"process {rank()} of {world()}")
test_eq((world(), rank()), (1, 0))


# %% [markdown]
# ## Rows
#
# A batch is dealt like cards: process `r` of `W` gets the rows `r, r+W, r+2W, …`. `gather_rows` puts the rows of all processes together again in the old order.
#
# And the gradient? Every process computes the same loss $\ell$ from the gathered rows, so each knows $\partial\ell/\partial(\text{local rows})$ without asking. The gradients of the weights must then be *added up* over the processes, and `DistributedDataParallel` takes their *mean*. Hence the factor $W$.

# %%
#| export
class GatherRows(torch.autograd.Function):
    "The rows of all processes, dealt as above; the gradient is that of the local rows, times the number of processes."

    @staticmethod
    def forward(ctx, rows):
        "Rows [b,…] of this process → rows [b*world,…] of all."
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        "Gradient [b*world,…] → [b,…]."
        local = gradient[rank()::world()]
        return world()*local

def gather_rows(
    rows: torch.Tensor, # [b,…], the same shape in all processes
) -> torch.Tensor: # [b*world,…]
    "The rows [b,…] of all processes, in the order of the whole batch: [b*world,…]; with one process, the rows themselves."
    if world() == 1: return rows
    if rows.dtype == torch.bool: return gather_rows(rows.byte()).bool()
    return GatherRows.apply(rows.contiguous())


# %% [markdown]
# With one process nothing is sent: the rows themselves come back.

# %%
rows = torch.arange(6.).reshape(3, 2)
assert gather_rows(rows) is rows


# %% [markdown]
# Work that needs no gradient (a teacher's answers, validation) is dealt and collected in the same way. The last round is filled up, so that all have equally much.

# %%
#| export
def own_share(n: int) -> torch.Tensor:
    "Which of `n` pieces of work are this process's: equally many for all, some twice where they do not come out even."
    rounds = -(-n//world())
    return torch.arange(rank(), rounds*world(), world()) % n

def collect(results: torch.Tensor, n: int) -> torch.Tensor:
    "The results [n,…] of all pieces of work, from what each process made of its `own_share`."
    if world() == 1: return results
    return gather_rows(results.to(sending_device())).to(results.device)[:n]


# %% [markdown]
# One process has all the work, and what it collects is what it made.

# %%
test_eq(own_share(5).tolist(), [0, 1, 2, 3, 4])
test_eq(collect(rows, 3), rows)


# %% [markdown]
# ## Batch normalisation
#
# PyTorch has a `SyncBatchNorm`, for cards only. On CPUs (where we test) the same is quickly written: sums of $x$ and $x^2$ over all processes, in double precision because they will be subtracted. timm's variety of batch normalisation, with dropout and activation built in, keeps them.

# %%
#| export
class SumOverAll(torch.autograd.Function):
    "The sum of a tensor over all processes, and of its gradient."

    @staticmethod
    def forward(ctx, values):
        "Values of any shape → their sum."
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        "The gradients of all processes, added up."
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


# %%
#| export
def mean_and_square(x: torch.Tensor, n: float) -> torch.Tensor:
    "Means of x and x², float64 [2,C], over the `n` values of each channel of x [B,C,H,W] in all processes."
    wide = x.double()
    sums = torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
    return SumOverAll.apply(sums/n)

def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    "A value a channel [C], in the type and shape that goes with x [B,C,H,W]."
    return values.to(x.dtype)[:, None, None]


# %% [markdown]
# Four values, ready to be multiplied with a batch of maps:

# %%
test_eq(per_channel(torch.zeros(4), torch.zeros(2, 4, 8, 8)).shape, (4, 1, 1))


# %%
#| export
class GlooBatchNorm(nn.BatchNorm2d):
    "Batch normalisation over the images of all processes (Ioffe & Szegedy 2015), where `SyncBatchNorm` does not serve."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        "x [B,C,H,W] normalised, then timm's dropout and activation if the layer has them."
        x = self.normalised(x) if self.training and world() > 1 else super().forward(x)
        return self.act(self.drop(x)) if hasattr(self, "act") else x

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        "x [B,C,H,W] with the statistics of all processes, which have equally many images each."
        n = world()*x.numel()/x.shape[1]
        mean, square = mean_and_square(x, n)
        variance = square - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance*n/(n - 1)).to(self.running_var.dtype), self.momentum)
        scale = (variance + self.eps).rsqrt()*self.weight
        return (x - per_channel(mean, x))*per_channel(scale, x) + per_channel(self.bias, x)


# %% [markdown]
# With one process it agrees with PyTorch's own layer.

# %%
layer, ordinary, x = GlooBatchNorm(4), nn.BatchNorm2d(4), torch.randn(2, 4, 8, 8)
test_close(layer(x), ordinary(x), 1e-6)  # one process: PyTorch's own


# %%
#| export
def synchronise(model: nn.Module) -> nn.Module:
    "`model` with batch statistics over all processes; with one process, `model` as it is. Names of weights do not change."
    if world() == 1: return model
    if dist.get_backend() == "nccl":
        import_timm()
        from timm.layers import convert_sync_batchnorm  # knows timm's own variety beside PyTorch's
        return convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GlooBatchNorm
    return model


# %% [markdown]
# With one process the network is left as it is.

# %%
assert synchronise(layer) is layer


# %% [markdown]
# ## Leaving
#
# A process of several that has done its work takes PyTorch's communication apart. On a busy machine it aborts over that once in some hundred times (`terminate called without an active exception`), whether the process group was destroyed first or not. Everything is written by then, but `torchrun` reports a failure. So a process leaves without taking anything apart.

# %%
#| export
def leave(status: int = 0) -> None:
    "End this process at once, if it is one of several; files must have been closed, and streams are flushed."
    if world() == 1: return
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(status)


# %%
leave()  # one process stays

# %% [markdown]
# Does it hold? Two processes with two images each, against one with four: a small network with batch normalisation, and a loss that is a ratio of sums over the batch.

# %%
script = """
import sys, torch, torch.distributed as dist
from torch import nn
from ctseg.core.parallel import gather_rows, leave, rank, synchronise, world
torch.set_num_threads(1)
if len(sys.argv) > 1: dist.init_process_group("gloo")
torch.manual_seed(0)
model = synchronise(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)))
if world() > 1: model = nn.parallel.DistributedDataParallel(model)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
images, truth = torch.rand(4, 1, 12, 12), (torch.rand(4, 100) > 0.7).float()
for step in range(3):
    p = model(images[rank()::world()]).sigmoid().flatten(1)
    y = truth[rank()::world()]
    TP, P, T = gather_rows((p*y).sum(1)), gather_rows(p.sum(1)), gather_rows(y.sum(1))
    loss = 1 - 2*TP.sum()/(P.sum() + T.sum())
    opt.zero_grad(); loss.backward(); opt.step()
    if rank() == 0: print(f"{loss.item():.5f}", end=" ")
mean = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
if rank() == 0: print("  running means", [round(v, 4) for v in mean.tolist()])
leave()
"""
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"two.py"
    path.write_text(script)
    one, two = [
        subprocess.run(
            [sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        for command in (
            [path],
            ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", path, "gloo"],
        )
    ]
print("one process   ", one)
print("two processes ", two)
test_eq(one, two)

# %% [markdown]
# ## Only one writes
#
# The run folder is written by process 0. What can fail there must fail everywhere, or the others would wait for ever. The mistake should be *told* once, by process 0.

# %%
#| export
Result = TypeVar("Result")

class Elsewhere(InputError):
    "Process 0 has failed, and has told why."
    told = True

def on_main(f: Callable[[], Result]) -> Result | None:
    "Call `f` in process 0 only; what it raises is raised in all. Its result in process 0, None elsewhere."
    if world() == 1: return f()
    result, problem = None, None
    if rank() == 0:
        try:
            result = f()
        except Exception as e:  # the others wait, and must hear of whatever it is
            problem = e
    message = [f"{type(problem).__name__}: {problem}" if problem else None]
    dist.broadcast_object_list(message, device=sending_device())
    if problem: raise problem
    if message[0] is not None: raise Elsewhere(message[0])
    return result

def main_first(f: Callable[[], Result]) -> Result:
    "Call `f` in process 0, then in the others (which then find its cache)."
    result = on_main(f)
    return result if rank() == 0 else f()


# %% [markdown]
# Process 0 writes, and everybody reads.

# %%
test_eq((on_main(lambda: "written"), main_first(lambda: "read")), ("written", "read"))


# %%
#| export
def most(values: list[float]) -> list[float]:
    "The largest of each value over all processes."
    largest = torch.tensor(values, device=sending_device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()

def agree(flag: bool) -> bool:
    "Does any process say yes?"
    if world() == 1: return flag
    return bool(most([float(flag)])[0])

def must_be_alike(value: int, complaint: str) -> None:
    "`InputError` in all processes, told once, unless all have the same `value`."
    if world() == 1: return
    largest, minus_smallest = most([float(value), -float(value)])
    error = Elsewhere if rank() else InputError
    if largest + minus_smallest: raise error(complaint)


# %%
test_eq(agree(True), True)
must_be_alike(7, "the processes hold different data")

# %% [markdown]
# ## Starting them
#
# Nothing but the launcher's own flags is needed. The two T4 of a Kaggle notebook:
#
# ```
# !torchrun --standalone --nproc_per_node=2 -m ctseg fit DATA --out runs/two --recipe masked --set batch_size=16
# ```
#
# Two hosts with four cards each under Slurm (the run folder on a disk that both see):
#
# ```
# srun --nodes=2 --ntasks-per-node=1 torchrun --nnodes=2 --nproc_per_node=4 --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$(scontrol show hostnames $SLURM_NODELIST | head -1):29500 -m ctseg fit DATA --out runs/eight --set batch_size=64
# ```
#
# `accelerate launch -m ctseg fit …` works as well. `batch_size` is that of all processes together and must be a multiple of their number. What each process does for the whole batch, rather than for its share, is
# the augmentation; that is cheap beside the network's work, but does not shrink with more processes.

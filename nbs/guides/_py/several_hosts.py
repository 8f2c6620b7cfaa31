# %% [markdown]
# # Several GPUs, several hosts
#
# > One training on many processes, with the result of one process; and a batch file for Slurm.
#
# - skip_showdoc: true

# %% [markdown]
# ```sh
# torchrun --standalone --nproc_per_node=4 -m ctseg fit my_data --out runs/four --set batch_size=16   # four GPUs of one machine
# ```
#
# `torchrun` starts a process for each GPU. `batch_size` is the number of slices that all processes learn from in one step together, and a multiple of their number. The processes
# train what one would train with the same `batch_size`: [losses, batch statistics and mixed images](../core/60_parallel.ipynb) are those of the whole batch.
#
# ## A store that all can reach
#
# More than a few thousand slices are best made a [store](more_than_memory.ipynb), once, on one machine:
#
# ```sh
# ctseg import nifti scans /shared/my_data.zarr --store     # or: ctseg store my_data --out /shared/my_data.zarr
# ctseg check /shared/my_data.zarr
# ```
#
# Each process opens the store and reads the index. Of the pixels it reads the batches of its steps, ahead of time, and no process reads all of them. (Of a batch it reads the whole
# and not its share alone, because CutMix pairs slices across the batch; sixteen slices of 256x256 are 2 MB.) A store at an address such as `s3://bucket/my_data` serves as well.
# The **run folder** must be on a disk that all processes see; where they see different ones, this is told at once. Process 0 writes it.
#
# ## Slurm
#
# Two hosts with four GPUs each; save it as `train.sh`, below a first line `#!/bin/bash`, and give it to `sbatch`:
#
# ```sh
# #SBATCH --nodes=2
# #SBATCH --ntasks-per-node=1
# #SBATCH --gpus-per-node=4
# #SBATCH --cpus-per-task=16
# #SBATCH --time=04:00:00
# #SBATCH --requeue
#
# first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# srun torchrun --nnodes=2 --nproc_per_node=4 \
#     --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
#     -m ctseg fit /shared/my_data.zarr --out /shared/runs/eight --set batch_size=64 --memory 16GB --resume
# ```
#
# * `srun` starts one `torchrun` a host, and each of these four processes. They meet at the first host, port 29500.
# * `--resume` goes on from the last checkpoint, or begins where there is none, so the same file continues a job that was cut. Killed anywhere, the run ends as if it had not been.
# * `--memory` is for each process: how much of the slices it may keep on its GPU. The rest is read while it computes.
# * Without GPUs the processes compute on CPUs and speak through Gloo: leave out the line with `gpus`, and set `OMP_NUM_THREADS` to the cores of a host divided by `nproc_per_node`.
# * Predicting needs no such thing: give each host a part of the images.
#
# ## Tried without a cluster
#
# Two processes on one machine, one thread each, over one store:
#
# ```sh
# OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 -m ctseg fit my_data.zarr --out runs/two --device cpu --memory 1MB
# ```
#
# A test of the package does this with two Gloo processes: what is read from the store gives bit for bit the losses of the same slices in memory, and two processes give
# those of one, but for the rounding of sums in another order. It has not been run over several hosts, nor with NCCL. How a batch is shared:

# %%

from ctseg.data.sampling import EpochSampler

whole = EpochSampler(n=12, batch_size=4, seed=0).batches(0)
for number, batch in enumerate(whole):
    shares = [batch[rank::2].tolist() for rank in range(2)]
    print(f"step {number}: slices {batch.tolist()}, processes learn from {shares[0]} and {shares[1]}")

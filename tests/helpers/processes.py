"""Processes of their own that start fast: from a server that has imported ctseg and done nothing else.

A fork of the process of the tests would take along whatever threads its earlier tests left, in the
middle of their work.
"""
import contextlib
import multiprocessing as mp
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import DupFd

from . import toys  # noqa: F401 registers the network of the tests, there too

SERVER = mp.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "ctseg.cli",
        "ctseg.recipes.fit",
        "ctseg.prediction.submission",
        "torch._dynamo",
        "pandas",
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",  # what a training imports late
    ]
)


class Output:
    "Where the process of the tests writes: its two streams, as they are while another process is started."
    def __getstate__(self): return {"streams": [DupFd(1), DupFd(2)]}

    def become_mine(self):
        for number, stream in enumerate(self.streams, 1): os.dup2(stream.detach(), number)


def child(f: Callable, args: tuple, env: dict[str, str], output: Output):
    import torch
    output.become_mine()
    settle(env)
    torch.set_num_threads(1)
    f(*args)


def settle(env: dict[str, str]):
    "The environment of the process of the tests, of now and not of when the server began."
    os.environ.clear()
    os.environ.update(env)


def start(f: Callable, *args, env: dict[str, str] = {}) -> mp.Process:
    "`f(*args)` in another process; its exit code is 1 if it raises. Both go there as pickles."
    process = SERVER.Process(target=child, args=(f, args, {**os.environ, **env}, Output()))
    process.start()
    return process


@contextlib.contextmanager
def elsewhere() -> Iterator[Callable]:
    "One other process for several calls: `call(f, *args)` gives what `f` returns, and raises what it raises."
    with ProcessPoolExecutor(1, SERVER, settle, ({**os.environ},)) as pool:
        yield lambda f, *args: pool.submit(f, *args).result()

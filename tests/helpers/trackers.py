"A tracker that remembers, as if its package were installed."
import sys
from types import SimpleNamespace

import pytest
from accelerate import tracking

from ctseg.recipes.fit import fit


class Memory(tracking.GeneralTracker):
    "Remembers what it is told."
    name, requires_logging_directory, seen = "memory", False, []
    tracker = None
    def __init__(self, run_name): super().__init__()
    def start(self): self.seen.append("start")
    def store_init_configuration(self, values): self.seen.append(values)
    def log(self, values, step=None): self.seen.append((step, values))
    def finish(self): self.seen.append("finish")


def enter_memory(monkeypatch):
    "Have accelerate know the tracker `memory`."
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "memory", Memory)
    monkeypatch.setitem(sys.modules, "memory", SimpleNamespace(__spec__=SimpleNamespace()))


def fit_tracked(slices, recipe, out):
    "Fit with that tracker, in a process of its own."
    with pytest.MonkeyPatch.context() as m:
        enter_memory(m)
        fit(slices, recipe, out, device="cpu", progress=False, log="memory")

"The costs of a network are those of its code."
import csv
import time
from pathlib import Path

import pytest
import torch

from ctseg.models.base import EncoderDecoder
from ctseg.models.costs import PeakMemory, model_facts, multiply_adds, process_bytes

ROOT = Path(__file__).resolve().parents[2]


def test_multiply_adds_by_hand():
    "One 3x3 convolution is counted as what it is."
    class One(EncoderDecoder):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Conv2d(2, 5, 3, padding=1)

        def encode(self, x): return [x]
        def decode(self, features, size): return self.head(features[0])
    assert multiply_adds(One(), 16, in_chans=2) == 2*5*9*256


@pytest.mark.parametrize("name", ["attunet", "missformer", "uctransnet"])
def test_published_costs_are_those_of_the_code(name):
    "The table that the pages read. The networks that need an extra are counted when it is written."
    table = ROOT/"nbs"/"benchmarks"/"results"/"models.csv"
    with table.open(encoding="utf-8", newline="") as f:
        (row,) = (r for r in csv.DictReader(f) if r["name"] == name)
    facts = model_facts(name, measure=False)
    sizes = ("parameters", "multiply_adds")
    assert {k: int(row[k]) for k in sizes} == {
        k: facts[k] for k in sizes
    }, "run nbs/benchmarks/model_costs.ipynb"


def test_a_page_of_memory_may_be_large(tmp_path, monkeypatch):
    (tmp_path/"statm").write_text("9 3 1")
    monkeypatch.setattr("ctseg.models.costs.OCCUPIED", tmp_path/"statm")
    monkeypatch.setattr("mmap.PAGESIZE", 2**16)
    assert process_bytes() == 3*2**16


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the memory of a process")
def test_peak_memory_sees_what_is_gone_again():
    "The peak counts, not what is left at the end."
    with PeakMemory("cpu") as peak:
        block = torch.ones(64, 2**18)  # 64 MB
        block.sum()
        time.sleep(.05)
        del block
    assert 60 < peak.mb < 100

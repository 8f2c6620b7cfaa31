"The order of slices is a function of seed and epoch, for any number of processes."
import numpy as np
from helpers.folders import quick
from hypothesis import given, strategies as st

from ctseg.data.sampling import EpochSampler


@quick
@given(n=st.integers(1, 50), batch=st.integers(1, 6), world=st.integers(1, 3), epoch=st.integers(0, 9), drop=st.booleans(),
       weighted=st.booleans())
def test_processes_share_every_epoch_of_the_sampler(n, batch, world, epoch, drop, weighted):
    batch *= world
    weights = np.random.default_rng(n).uniform(.5, 3, n) if weighted else None
    make = lambda **kw: EpochSampler(n, batch, 7, weights, drop_last=drop, **kw)
    whole = make().batches(epoch)
    assert len(whole) == len(make())
    assert all(len(b) == batch for b in (whole if drop else whole[:-1]))
    assert [b.tolist() for b in make().batches(epoch)] == [b.tolist() for b in whole]
    ranks = [make(rank=r, world=world).batches(epoch) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1 and all(
        len({len(b) for b in together}) == 1 for together in zip(*ranks)
    )
    if drop:
        assert [sorted(i for b in together for i in b.tolist()) for together in zip(*ranks)] == [
            sorted(b.tolist()) for b in whole
        ]
    every = [i for b in whole for i in b.tolist()]
    if not weighted and n >= batch:
        assert len(set(every)) == len(every) if drop else set(every) == set(range(n))

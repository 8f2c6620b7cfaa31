"Windows and the settings of a cut."

import numpy as np
import pytest
from helpers.volumes import one_line

from ctseg.core.errors import InputError
from ctseg.io.slicing import WINDOWS, Slicing, to_8bit


@pytest.mark.parametrize(
    "kw",
    [
        dict(orientation="SPP"),
        dict(orientation="XYZ"),
        dict(orientation=""),
        dict(window="sofd"),
        dict(window=(40, 0)),
        dict(window=(np.nan, 400)),
        dict(window=(40, np.inf)),
        dict(every=0),
        dict(size=-1),
        dict(spacing="fit"),
        dict(spacing=-1.0),
        dict(spacing=np.nan),
        dict(spacing=np.inf),
        dict(spacing=1e-9),
        dict(spacing=1000),
        dict(spacing="wide", size=4),
        dict(per_volume=0),
    ],
)
def test_bad_slicing(kw):
    with pytest.raises(InputError) as e:
        Slicing(**kw)
    one_line(e)


def test_a_window_maps_its_ends_to_0_and_255():
    assert to_8bit(np.array([-160.0, 240, 40]), *WINDOWS["soft"]).tolist() == [0, 255, 128]

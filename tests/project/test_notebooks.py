"""Every notebook in `nbs` runs top to bottom, nbdev directives honoured; folders with a `.notest` file are
long runs with kept outputs."""
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

ROOT = Path(__file__).resolve().parents[2]


def runs_here(path: Path) -> bool:
    inner = path.relative_to(ROOT/"nbs").parts
    return not any(p.startswith((".", "_")) for p in inner) and not any(
        (d/".notest").exists() for d in path.parents if ROOT in d.parents
    )


NBS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if runs_here(p))


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_notebook(path, registries):
    ok, _ = run_nb(path, skip_flags=get_config(ROOT).tst_flags.split(), basepath=ROOT)
    assert ok

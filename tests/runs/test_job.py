"What a job refuses before it starts."
from dataclasses import replace

import pytest
import torch
from helpers.phases import weights
from helpers.toys import small, toy

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.recipes.fit import fit
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.runs.phases import Phases
from ctseg.training.method import Phase


def test_a_side_without_its_counterpart_is_not_mirrored(tmp_path):
    slices = toy()
    alone = replace(slices, classes=ClassMap.from_names(["kidney_left", "liver", "spleen"]))
    Job(small("masked"), alone, Run(tmp_path/"a"), progress=False)
    with pytest.raises(InputError, match="kidney_left"):
        Job(small("masked", "mirror=vertical"), alone, Run(tmp_path/"b"), progress=False)
    pair = replace(slices, classes=ClassMap.from_names(["kidney_l", "kidney_r", "spleen"]))
    assert Job(
        small("masked", "mirror=vertical"), pair, Run(tmp_path/"c"), progress=False
    ).setup.augment.mirror


def test_a_finished_run_that_is_looked_into_stays_what_it_is(tmp_path):
    recipe = small("original-teacher-student")
    run = fit(toy(), recipe, tmp_path/"a", device="cpu", progress=False)
    before = weights(run), (run/"history.csv").read_text()
    job = Job(recipe, toy(), run, progress=False)
    teacher = Phases(job).train(Phase("teacher", job.labelled))
    assert (run/"history.csv").read_text() == before[1] and torch.equal(weights(run), before[0])
    assert not torch.equal(torch.cat([v.flatten().float() for v in teacher.state_dict().values()]), before[0])

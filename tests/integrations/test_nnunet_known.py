"Who examined what, for nnU-Net: the file, the loss, a teacher's answers, the scores."
import json

import numpy as np
import pytest
import torch
from helpers.volumes import one_line

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.integrations.nnunet_known import (
    CaseLoss, ExaminedCases, completed_target, examined_file, examined_scores,
)
from ctseg.losses.registry import create_loss

THREE = ClassMap.from_names(["liver", "kidney", "spleen"])
SPACES = [(4, 4), (2, 4, 4)]


def table(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_the_file_beside_the_raw_data_comes_first(tmp_path, monkeypatch):
    preprocessed = tmp_path/"pre"/"Dataset501_x"
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(InputError) as e: examined_file("Dataset501_x", preprocessed)
    assert "annotated_labels.json" in one_line(e)
    kept = table(preprocessed/"annotated_labels.json", {})
    assert examined_file("Dataset501_x", preprocessed) == kept
    monkeypatch.setenv("nnUNet_raw", str(tmp_path/"raw"))
    assert examined_file("Dataset501_x", preprocessed) == kept
    raw = table(tmp_path/"raw"/"Dataset501_x"/"annotated_labels.json", {})
    assert examined_file("Dataset501_x", preprocessed) == raw


@pytest.mark.parametrize("content", [["p1"], {"p1": "liver"}, {"p1": ["livr"]}, {"p1": [4]}, {"p1": [0]}])
def test_a_file_that_says_something_else_is_refused(tmp_path, content):
    with pytest.raises(InputError) as e: ExaminedCases(table(tmp_path/"a.json", content), THREE)
    assert "a.json" in one_line(e)


def test_cases_by_name(tmp_path):
    examined = ExaminedCases(table(tmp_path/"a.json", {"p1": ["kidney", 3], "p2": []}), THREE)
    keys = np.array(["p2", "p1"])  # nnU-Net's loader gives an array
    assert examined.batch(keys).tolist() == [[False]*3, [False, True, True]]
    assert examined.labelled(["p1", "p2", "p1"]) == ["p1", "p1"]
    with pytest.raises(InputError) as e: examined.batch(["p3"])
    assert "p3" in one_line(e)
    examined.check_drawn("p1", [2])
    with pytest.raises(InputError) as e: examined.check_drawn("p2", [1])
    assert "liver" in one_line(e) and "p2" in one_line(e)


@pytest.mark.parametrize("space", SPACES)
def test_what_nobody_looked_for_is_never_pushed_down(space):
    torch.manual_seed(0)
    loss = CaseLoss(create_loss("marginal"))
    logits = torch.randn(2, 4, *space, requires_grad=True)
    target = torch.zeros(2, 1, *space, dtype=torch.int16)
    target[0, 0, ..., 0] = 1
    known = torch.tensor([[True, False, False], [False]*3])
    loss.tell(known)
    loss(logits, target).backward()
    unlabelled = target[0, 0] == 0
    pull = -logits.grad[0][:, unlabelled]
    assert (pull[0] > 0).all() and (pull[2:] > 0).all() and (pull[1] < 0).all()
    assert torch.equal(logits.grad[1], torch.zeros_like(logits.grad[1]))


@pytest.mark.parametrize("space", SPACES)
def test_the_same_as_the_loss_itself(space):
    torch.manual_seed(1)
    logits, target = torch.randn(2, 4, *space), torch.randint(0, 4, (2, 1, *space), dtype=torch.int16)
    known = torch.tensor([[True, False, True], [True]*3])
    plain, loss = create_loss("marginal"), CaseLoss(create_loss("marginal"), ignore=4)
    loss.tell(known)
    assert torch.equal(loss(logits, target), plain(logits, target[:, 0].long(), known))
    ignored = target.clone()
    ignored[..., 0] = 4
    expected = plain(logits, ignored[:, 0].long().masked_fill(ignored[:, 0] == 4, 255), known)
    assert torch.equal(loss(logits, ignored), expected)
    assert not torch.equal(expected, loss(logits, target))


def test_a_loss_that_was_told_nothing_says_so():
    with pytest.raises(InputError): CaseLoss(create_loss("marginal"))(torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("space", SPACES)
def test_a_teacher_completes_and_contradicts_nothing(space):
    generator = torch.Generator().manual_seed(3)
    logits = 8*torch.randn(3, 4, *space, generator=generator)
    target = torch.randint(0, 5, (3, 1, *space), generator=generator).to(torch.int16)  # 4: ignored
    known = torch.tensor([[True, False, False], [False]*3, [True]*3])
    target[1] = 0
    mask, *each = completed_target(target, logits, known, 0.9).unbind(1)
    settled = torch.stack(each).amin(0)
    given = target[:, 0] > 0
    assert torch.equal(mask[given], target[:, 0][given])  # truth and ignored voxels stay
    assert not (mask[0][~given[0]] == 1).any()            # examined and not found: it is not
    assert torch.equal(mask[2], target[2, 0])             # everything was examined
    sure = logits[1].softmax(0).amax(0) >= 0.9            # nobody looked: the teacher's own answer
    assert torch.equal(settled[1].bool(), sure) and sure.any() and not sure.all()
    assert torch.equal(mask[1][sure].long(), logits[1].argmax(0)[sure]) and not mask[1][~sure].any()
    assert each[0][0].all() and each[1][2].all()          # what was examined stays known everywhere


def test_a_settled_voxel_is_asked_for_all_classes():
    logits = torch.zeros(1, 4, 1, 2, requires_grad=True)
    loss = CaseLoss(create_loss("marginal"))
    loss.tell(torch.zeros(1, 3, dtype=torch.bool))
    loss(logits, torch.tensor([[[[0, 0]], *[[[1, 0]]]*3]])).backward()
    pull = -logits.grad[0, :, 0]
    assert pull[0, 0] > 0 and (pull[1:, 0] < 0).all() and not pull[:, 1].any()


def test_scores_of_what_was_examined(tmp_path):
    examined = ExaminedCases(table(tmp_path/"a.json", {"p1": [1, 2], "p2": [1], "p3": []}), THREE)
    nan = float("nan")
    values = {"p1": (0.8, 0.6, 0.1), "p2": (0.4, 0.0, 0.1), "p3": (0.0, 0.0, 0.0)}
    rows = [
        {"prediction_file": f"/a/{case}.nii.gz", "metrics": {str(c + 1): {"Dice": v, "FP": 7} for c, v in enumerate(dice)}}
        for case, dice in values.items()
    ]
    mean = {str(c): {"Dice": 9., "FP": 9} for c in (1, 2, 3)}
    result = examined_scores({"metric_per_case": rows, "mean": mean, "foreground_mean": {"Dice": 9., "FP": 9}},
                             examined, ".nii.gz")
    assert result["mean"]["1"]["Dice"] == pytest.approx(0.6) and result["mean"]["2"]["Dice"] == pytest.approx(0.6)
    assert np.isnan(result["mean"]["3"]["Dice"]) and np.isnan(result["metric_per_case"][2]["metrics"]["1"]["FP"])
    assert result["foreground_mean"]["Dice"] == pytest.approx(0.6) and rows[1]["metrics"]["2"]["Dice"] == 0
    assert nan != result["mean"]["3"]["FP"]

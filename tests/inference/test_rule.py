"The steps of the decision rule that many examples must hold for."
import json
from dataclasses import asdict

import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from ctseg.inference.rule import (
    Rule, close_gate, decide, drop_islands, drop_scraps, label_certainty, read_rule, rescue)


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, (2, 9, 8), elements=st.integers(0, 3)), st.integers(1, 6))
def test_no_small_island_is_left_and_nothing_else_is_touched(label, least):
    out = drop_islands(torch.from_numpy(label), least).numpy()
    want = label.copy()
    for m in want:
        for c in (1, 2, 3):
            pieces, n = ndimage.label(m == c, np.ones((3, 3)))
            for k in range(1, n + 1):
                if (pieces == k).sum() < least: m[pieces == k] = 0
    assert np.array_equal(out, want)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint8, (2, 9, 8), elements=st.integers(0, 3)),
    st.tuples(*[st.floats(0, 1, allow_nan=False) for _ in range(3)]),
)
def test_a_class_stays_whole_or_goes_whole(label, least):
    out = drop_scraps(torch.from_numpy(label), least).numpy()
    for before, after in zip(label, out):
        for c, share in enumerate(least, 1):
            stays = np.float32((before == c).sum()/before.size) >= np.float32(share)
            assert np.array_equal(after == c, (before == c) & stays)


def test_a_rule_is_read_as_it_was_written():
    rule = Rule(0.3, least=(0.01, 0.2))
    saved = json.loads(json.dumps(asdict(rule)))
    assert read_rule(saved) == rule and str(rule) == "threshold 0.3, least areas"
    older = {name: value for name, value in saved.items() if name != "least"}
    assert read_rule(older) == Rule(0.3)


def test_rescue_fills_empty_images_only():
    prob = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))*0.4
    prob[2] *= 0.1
    label = torch.zeros(4, 5, 5, dtype=torch.uint8)
    label[1, 0, 0] = 3
    out = rescue(label, prob, 0.2)
    assert torch.equal(out[1], label[1]) and not out[2].any() and out[0].any() and out[3].any()
    assert set(out[0].unique().tolist()) <= {0, int(prob[0].amax((1, 2)).argmax()) + 1}


probabilities = arrays(np.float32, (2, 3, 4, 5), elements=st.floats(0, 1, width=32))


def as_prob(array, activation):
    "Probabilities of a pixel sum to at most 1 where they are of a softmax."
    prob = torch.from_numpy(array)
    return prob if activation == "sigmoid" else prob/prob.sum(1, keepdim=True).clamp(min=1)


@settings(max_examples=60, deadline=None)
@given(probabilities, st.sampled_from(["softmax", "sigmoid"]))
def test_a_label_is_at_least_as_probable_as_any_other(array, activation):
    "Argmax against its definition, pixel by pixel, and the probability that goes with the label."
    prob = as_prob(array, activation)
    label = decide(prob, Rule(), activation)
    certainty = label_certainty(prob, label, activation)
    background = 1 - prob.sum(1) if activation == "softmax" else 1 - prob.amax(1)
    every = torch.cat([background[:, None], prob], 1)
    assert torch.equal(certainty, every.gather(1, label[:, None].long())[:, 0].clamp(0, 1))
    assert (every.amax(1).clamp(0, 1) == certainty).all()
    assert (label[background == prob.amax(1)] == 0).all()  # a draw goes to background


@settings(max_examples=60, deadline=None)
@given(probabilities, st.floats(0, 1))
def test_a_gate_hides_whole_classes(array, least):
    prob = torch.from_numpy(array)
    closed = close_gate(prob, least)
    reached = prob.amax((2, 3)) >= least
    assert torch.equal(closed[reached], prob[reached]) and not closed[~reached].any()
    label = decide(prob, Rule(threshold=0.4, gate=least), "sigmoid")
    for image, ok in zip(label, reached):
        assert set(image.unique().tolist()) <= {0, *(ok.nonzero()[:, 0] + 1).tolist()}


def test_each_step_is_off_at_0():
    prob = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for activation in ("softmax", "sigmoid"):
        assert torch.equal(
            decide(prob, Rule(gate=0, island=0, rescue=0), activation), decide(prob, Rule(), activation)
        )

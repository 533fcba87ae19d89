"""Golden computed-step lists; they are written out here, not derived."""

from itertools import product

import numpy as np
import pytest

from spectrum_bench import schedules
from spectrum_bench.schedules import adaptive_window, mask, plan, uniform

GOLDEN = {  # (T, window, flex, warmup): computed steps
    (50, 2, 0.75, 5): [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46],
    (50, 2, 3.0, 5): [0, 1, 2, 3, 4, 6, 11, 19, 30, 44],
    (50, 4, 0.0, 1): [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48],
    (50, 4, 0.0, 3): [0, 1, 2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46],
    (50, 4, 0.0, 5): [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48],
    (50, 6, 0.0, 1): [0, 6, 12, 18, 24, 30, 36, 42, 48],
    (50, 6, 0.0, 5): [0, 1, 2, 3, 4, 10, 16, 22, 28, 34, 40, 46],
    (50, 8, 0.0, 5): [0, 1, 2, 3, 4, 12, 20, 28, 36, 44],
    (20, 2, 0.75, 5): [0, 1, 2, 3, 4, 6, 8, 11, 15],
    (28, 2, 0.75, 5): [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25],
    (100, 2, 0.75, 5): [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46, 54, 63, 73, 84, 95],
}


@pytest.mark.parametrize("key", GOLDEN, ids=str)
def test_golden_lists(key):
    T, window, flex, warmup = key
    assert adaptive_window(T, window=window, flex=flex, warmup=warmup).nonzero()[0].tolist() == GOLDEN[key]


@pytest.mark.parametrize("flex,nfe", [(0, 27), (0.25, 18), (0.5, 15), (1, 13), (1.5, 12), (2, 11), (2.5, 10), (4, 9)])
def test_passes_of_the_flex_sweep(flex, nfe):
    assert adaptive_window(50, window=2, flex=flex, warmup=5).sum() == nfe


def published_steps(T, window, flex, warmup):
    """The counter as hanjq17/Spectrum@f7b7841 and Shenyi-Z/TaylorSeer@288776d keep it, step by step."""
    size, skipped, computed = window, 0, []
    for step in range(T):
        full = True
        if step >= warmup:
            full = (skipped + 1) % int(size) == 0
            if full:
                size = round(size + flex, 3)
        skipped = 0 if full else skipped + 1
        if full:
            computed.append(step)
    return computed


@pytest.mark.parametrize("T", [1, 3, 20, 28, 50, 100])
def test_equals_the_published_state_machine(T):
    for window, flex, warmup in product([1, 2, 2.5, 6], [0, 0.1, 1 / 3, 0.75, 3], [1, 3, 5, 200]):
        ours = adaptive_window(T, window=window, flex=flex, warmup=warmup).nonzero()[0].tolist()
        assert ours == published_steps(T, window, flex, warmup), (window, flex, warmup)


def test_full_uniform_and_mask():
    assert schedules.full(7).all()
    assert uniform(50, interval=5, warmup=3).nonzero()[0].tolist() == [0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47]
    assert mask(6, steps=[0, 3, 3]).tolist() == [True, False, False, True, False, False]


def test_magcache_by_hand():
    """Products of 1.1: errors .1 | .1 + .21 | .1 + .21 + .331, so that 0.35 skips two in a row."""
    rule = {"threshold": 0.35, "longest": 9, "retention": 0.2}
    up = schedules.magcache(10, ratios=[1.0] + [1.1] * 9, **rule)
    assert up.nonzero()[0].tolist() == [0, 1, 4, 7]
    assert schedules.magcache(10, ratios=[1.0] + [1.1] * 9, **rule | {"longest": 1}).nonzero()[0].tolist() == [
        0,
        1,
        3,
        5,
        7,
        9,
    ]
    assert schedules.magcache(10, ratios=[1.0] + [1.1] * 9, **rule | {"threshold": 0}).all()
    kept = schedules.magcache(10, ratios=[1.0] * 10, **rule, always=[5])
    assert kept.nonzero()[0].tolist() == [0, 1, 5]
    assert schedules.magcache(19, ratios=[1.0] * 10, **rule, always=[5])[[10, 11]].tolist() == [
        True,
        False,
    ]  # 19 steps, 10 ratios


def test_magcache_retains_as_many_steps_as_the_code_of_its_model():
    """0.2 of 28 steps: 6 for FLUX, 5 for HunyuanVideo (Zehong-Ma/MagCache@8715292)."""
    rule = {"ratios": [1.0] * 28, "threshold": 1.0, "longest": 99, "retention": 0.2}
    assert schedules.magcache(28, **rule).nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert schedules.magcache(28, **rule, down=True).nonzero()[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: adaptive_window(50, window=2, flex=0.75, warmup=-1),
        lambda: adaptive_window(50, window=0, flex=0.75, warmup=5),
        lambda: adaptive_window(50, window=2, flex=-1, warmup=5),
        lambda: adaptive_window(50, window="two", flex=1, warmup=5),
        lambda: adaptive_window(50, window=2, flex=float("inf"), warmup=5),
        lambda: adaptive_window(50, window=2, flex=0.75, warmup=2.5),
        lambda: uniform(50, interval=0),
        lambda: uniform(50, interval=2.7),
        lambda: mask(50, steps=5),
        lambda: schedules.magcache(50, ratios=[1.0, "x"], threshold=0.1, longest=3, retention=0.1),
        lambda: schedules.magcache(50, ratios=[1.0], threshold=0.1, longest=0, retention=0.1),
        lambda: schedules.magcache(50, ratios=[1.0], threshold=-1, longest=1, retention=0.1),
        lambda: schedules.magcache(50, ratios=None, threshold=0.1, longest=3, retention=0.1),
        lambda: mask(50, steps=[0, 50]),
        lambda: mask(50, steps=[0, 1.5]),
        lambda: plan(lambda T: mask(T, steps=[1, 2]), 50),
        lambda: plan(lambda T: np.ones(T), 50),
        lambda: plan(lambda T: np.ones(T + 1, bool), 50),
        lambda: plan(schedules.full, 0),
    ],
)
def test_senseless_schedules_raise(make):
    with pytest.raises(ValueError, match="must|no constants"):
        make()

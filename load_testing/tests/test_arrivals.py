"""Load follows its shape, and arrivals follow the rate."""

from __future__ import annotations

import itertools
import random

import pytest

from triton_load.arrivals import Profile, moments
from triton_load.errors import LoadTestError


@pytest.mark.parametrize(
    ("profile", "levels"),
    [
        (Profile(shape="constant", base=5), {0: 5, 1000: 5}),
        (Profile(shape="ramp", base=2, peak=12, duration=100), {0: 2, 50: 7, 100: 12, 200: 12}),
        (
            Profile(shape="step", base=1, peak=4, duration=40, steps=4),
            {0: 1, 9: 1, 10: 2, 25: 3, 39: 4, 40: 4},
        ),
        (Profile(shape="spike", base=1, peak=9, duration=100), {0: 1, 39: 1, 40: 9, 59: 9, 60: 1}),
        (Profile(shape="soak", base=10, duration=100), {0: 0, 2.5: 5, 5: 10, 99: 10}),
    ],
)
def test_a_shape_has_its_levels(profile: Profile, levels: dict[float, float]) -> None:
    assert {at: profile.level(at) for at in levels} == pytest.approx(levels)


@pytest.mark.parametrize("arrival", ["constant", "poisson"])
@pytest.mark.parametrize(
    "profile",
    [
        Profile(shape="constant", base=20),
        Profile(shape="ramp", base=5, peak=35, duration=50),
        Profile(shape="spike", base=15, peak=40, duration=50),
    ],
    ids=lambda profile: profile.shape,
)
def test_as_many_arrive_as_the_rate_says(profile: Profile, arrival: str) -> None:
    found = moments(profile, arrival=arrival, share=1.0, source=random.Random(3))
    count = len(list(itertools.takewhile(lambda at: at < 50, found)))
    assert count == pytest.approx(1000, abs=2 if arrival == "constant" else 110)


def test_shares_add_up_and_do_not_fire_together() -> None:
    profile = Profile(shape="constant", base=10)
    parts = [
        list(
            itertools.takewhile(
                lambda at: at < 20,
                moments(profile, arrival="constant", share=0.25, source=random.Random(seed)),
            )
        )
        for seed in range(4)
    ]
    assert sum(len(part) for part in parts) == pytest.approx(200, abs=4)
    assert len({part[0] for part in parts}) == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"shape": "wave", "base": 1}, "--shape must be one of"),
        ({"shape": "constant", "base": 0}, "must be above 0"),
        ({"shape": "soak", "base": 1}, "needs an end"),
        ({"shape": "ramp", "base": 1, "duration": 9}, "needs --peak"),
        ({"shape": "step", "base": 1, "peak": 2, "duration": 9, "steps": 1}, "at least 2"),
    ],
)
def test_parts_that_do_not_agree_are_one_sentence(words: dict, sentence: str) -> None:
    with pytest.raises(LoadTestError, match=sentence):
        Profile(**words)

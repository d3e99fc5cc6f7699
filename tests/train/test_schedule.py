"""The learning rate's multiplier at each step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import PluginError
from pipeline.plugin import Schedule
from pipeline.plugin.registry import Registry
from pipeline.train.loop import set_learning_rate
from pipeline.train.schedule import extended, multiplier

REGISTRY = Registry.load(REPOSITORY / "plugins", ["schedules"])


def shipped(name: str, final: float = 0.1, decay: float = 0.3) -> Schedule:
    given = {"final": final, "decay": decay}
    options = {
        key: value
        for key, value in given.items()
        if key in type(REGISTRY.build("schedules", name, {}, "")).model_fields
    }
    schedule: Schedule = REGISTRY.build("schedules", name, {name: options}, "")
    return schedule


def table(name: str, steps: int, warmup: int, final: float = 0.1, decay: float = 0.3) -> list[float]:
    at = multiplier(shipped(name, final, decay), steps, warmup)
    return [at(step) for step in range(steps)]


def test_ten_steps_climb_to_one_peak_and_fall_to_the_minimum() -> None:
    fall = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 7)) / 2 for n in range(1, 8)]
    assert table("cosine", 10, 3) == pytest.approx([1 / 3, 2 / 3, 1, *fall], abs=1e-15)
    assert table("cosine", 10, 3)[-1] == 0.1


def test_ten_steps_without_warm_up_begin_at_the_peak() -> None:
    fall = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 9)) / 2 for n in range(10)]
    assert table("cosine", 10, 0) == pytest.approx(fall, abs=1e-15)
    assert table("cosine", 10, 0)[0] == 1


def test_one_step_of_warm_up_is_the_peak_itself() -> None:
    assert table("cosine", 10, 1) == table("cosine", 10, 0)


def test_a_constant_rate_stays_at_its_peak_after_warm_up() -> None:
    assert table("constant", 10, 4) == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_a_linear_rate_falls_in_equal_parts() -> None:
    assert table("linear", 6, 2, final=0.0) == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0])


def test_warm_up_stable_decay_stays_and_then_falls_in_its_share_of_the_steps() -> None:
    assert table("wsd", 10, 2, final=0.1) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.7, 0.4, 0.1])


def test_a_decay_longer_than_the_rest_starts_at_the_peak() -> None:
    assert table("wsd", 6, 2, final=0.0, decay=1.0) == table("linear", 6, 2, final=0.0)


@given(steps=st.integers(2, 60), data=st.data(), final=st.floats(0, 0.99))
def test_a_cosine_has_one_peak_a_first_rate_above_0_and_its_minimum_last(
    steps: int, data: st.DataObject, final: float
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    rates = table("cosine", steps, warmup, final)
    peak = rates.index(max(rates))
    assert rates[0] > 0
    assert rates[peak] == 1
    assert rates.count(1) == 1 or final > 0.98
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(final, abs=1e-12)


def test_an_inverse_square_root_does_not_know_the_end() -> None:
    assert table("inverse_sqrt", 16, 4) == pytest.approx([0.25, 0.5, 0.75, 1, *[2 / n**0.5 for n in range(5, 17)]])
    assert table("inverse_sqrt", 1000, 4)[:16] == table("inverse_sqrt", 16, 4)


@pytest.mark.parametrize(
    "value", [None, "1", float("nan"), float("inf"), 10**400, -0.1, 1j, torch.ones(2), ZeroDivisionError]
)
def test_what_is_no_rate_is_an_error_that_names_the_schedule(value: object) -> None:
    class Odd(Schedule):
        """Odd."""

        name: ClassVar[str] = "odd"

        def __call__(self, step: int, steps: int, warmup: int) -> Any:
            if value is ZeroDivisionError:
                return 1 / 0
            return value

    with pytest.raises(PluginError, match="'odd'"):
        multiplier(Odd(), 5, 2)(3)


def test_a_run_of_one_step_trains_at_the_peak() -> None:
    assert table("cosine", 1, 0) == table("cosine", 1, 1) == [1]


def test_the_rate_of_each_group_is_its_own_initial_rate_times_the_multiplier() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.1, 0.02)]
    optimizer = torch.optim.SGD(groups)
    for factor in (0.5, 1.0, 0.25):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.02 * factor]


# ── a finished run that goes on ───────────────────────────────────────────────────────────────────


def further(name: str, steps: int, peak: float, warmup: int = 3) -> list[float]:
    at = extended(shipped(name), 10, steps, warmup, peak)
    assert [at(step) for step in range(10)] == table(name, 10, warmup)
    return [at(step) for step in range(10, 10 + steps)]


def test_an_extended_run_climbs_from_where_it_ended_to_the_new_peak_and_falls_again() -> None:
    climb = [0.1 + 0.4 * n / 3 for n in (1, 2, 3)]
    fall = [0.1 + 0.4 * (1 + math.cos(math.pi * n / 7)) / 2 for n in range(1, 8)]
    assert further("cosine", 10, 0.5) == pytest.approx([*climb, *fall], abs=1e-12)


def test_a_short_extension_climbs_for_half_of_it_at_the_most() -> None:
    assert further("linear", 4, 0.5) == pytest.approx([0.3, 0.5, 0.3, 0.1], abs=1e-12)
    assert further("linear", 1, 0.5) == pytest.approx([0.5])


def test_a_constant_rate_stays_constant_in_an_extension() -> None:
    assert further("constant", 4, 0.5) == [1.0] * 4


@given(
    name=st.sampled_from(["cosine", "linear", "wsd"]),
    steps=st.integers(2, 60),
    peak=st.floats(0.1, 1),
    warmup=st.integers(0, 9),
)
def test_an_extension_has_one_peak_and_ends_at_the_minimum(name: str, steps: int, peak: float, warmup: int) -> None:
    rates = further(name, steps, peak, warmup)
    highest = max(rates)
    assert all(rate > 0 for rate in rates)
    assert highest == pytest.approx(peak)
    assert rates[-1] == pytest.approx(0.1) or steps < 3
    top = rates.index(highest)
    assert rates[top:] == sorted(rates[top:], reverse=True)

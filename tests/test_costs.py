# SPDX-License-Identifier: Apache-2.0
"""Costs learned from steps, by simulated clocks: noisy ones, machines that slow down, curves that change."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

import specdec_kernels as sdk

CURVES = {
    "flat": {1: 1.0, 16: 1.02, 64: 1.1},
    "cpu": {1: 1.0, 8: 1.45, 16: 2.05, 32: 3.0, 64: 4.2},
    "steep": {1: 1.0, 8: 6.0, 64: 46.0},
}
DEPTH = 7


class Machine:
    """The time of a step by its rows: a curve, a speed that changes, and noise of 5 %."""

    def __init__(self, curve, speed=lambda step: 1.0, seed=0):
        self.curve, self.speed, self.choices, self.step = curve, speed, random.Random(seed), 0

    def true(self, rows):
        return float(sdk.Budget(CURVES[self.curve]).cost(rows)) / self.speed(self.step) / 100

    def measured(self, rows):
        return self.true(rows) * math.exp(self.choices.gauss(0, 0.05))


SPEEDS = {
    "steady": lambda step: 1.0,
    "slows down": lambda step: 1.0 if step < 100 else 0.45,
    "comes and goes": lambda step: 1.0 + 0.5 * math.sin(step / 25),
}


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("name", CURVES)
def test_ratios_are_learned_whatever_the_speed(name, speed):
    machine = Machine(name, SPEEDS[speed])
    curve = sdk.CostCurve({1: 1.0, 64: 2.0}, max_rows=64)
    for machine.step in range(300):
        rows = machine.choices.choice([4, 8, 12, 24, 48])
        curve.observe(rows, machine.measured(rows))
    learned, true = (sdk.Budget(costs).cost for costs in (curve.costs(), CURVES[name]))
    for rows in (8, 12, 24, 48):
        # A speed that changes by 6 % a step is told apart from the curve by many steps only.
        assert learned(rows) / learned(4) == pytest.approx(true(rows) / true(4), rel=0.15)
        assert curve.error(rows, 4) < 0.1


def test_steps_of_one_size_tell_the_speed_alone():
    curve = sdk.CostCurve(CURVES["cpu"], max_rows=64)
    for step in range(100):
        curve.observe(16, 0.02 if step < 50 else 0.05)
        if step == 0:
            before = curve.costs()
    assert curve.seconds(16) == pytest.approx(0.05, rel=0.02)
    assert list(curve.costs().values()) == pytest.approx(list(before.values()), rel=0.15)


def test_old_measurements_are_doubted():
    curve = sdk.CostCurve(CURVES["cpu"], max_rows=64)
    for _ in range(30):
        for rows in (8, 32):
            curve.observe(rows, 0.01 * rows)
    fresh = curve.error(32, 8)
    for _ in range(200):
        curve.observe(32, 0.32)
    assert fresh < 0.06 and 0.1 < curve.error(32, 8) < 0.3


def test_one_slow_step_proves_little():
    curve = sdk.CostCurve(CURVES["cpu"], max_rows=64)
    for step in range(60):
        curve.observe(*((8, 0.0145) if step % 2 else (16, 0.0205)))
    curve.observe(16, 2.0)
    for step in range(10):
        curve.observe(*((8, 0.0145) if step % 2 else (16, 0.0205)))
    costs = sdk.Budget(curve.costs()).cost
    assert costs(16) / costs(8) == pytest.approx(2.05 / 1.45, rel=0.15)


def decode(machine, rate, steps, known):
    """Simulated decoding of four requests whose drafts are right at `rate(step)`: how much faster it was than
    plain decoding on that machine."""
    curve = sdk.CostCurve(known, max_rows=64)
    budget, batch = sdk.Budget(curve.costs(), allowance=0.01), 4
    calibrations = [sdk.Calibration()] * batch
    chances, parents = [0.8**d for d in range(DEPTH + 1)], list(range(-1, DEPTH))
    time = plain = 0.0
    drafted = batch
    for machine.step in range(steps):
        budget = replace(budget, costs=curve.costs())
        nodes = budget.choose([calibration.believe(chances, parents) for calibration in calibrations])
        if drafted > batch and curve.error(drafted, batch) > 0.1:
            nodes = [[0]] * batch
        sizes = list(map(len, nodes))
        drafted = sum(sizes)
        paths = [
            next((d for d in range(size - 1) if machine.choices.random() >= rate(machine.step)), size - 1)
            for size in sizes
        ]
        calibrations = [
            each.after(chances[:size], parents[:size], range(1 + hits))
            for each, size, hits in zip(calibrations, sizes, paths, strict=True)
        ]
        excess = curve.observe(drafted, machine.measured(drafted))
        tokens = [1 + hits for hits in paths]
        budget = budget.after(drafted, tokens, excess if drafted > batch else 0.0)
        time += machine.true(drafted)
        plain += machine.true(batch) * sum(tokens) / batch
    return plain / time


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("speed", SPEEDS)
def test_useless_drafts_cost_next_to_nothing_on_any_machine(name, speed):
    assert decode(Machine(name, SPEEDS[speed]), lambda step: 0.0, 300, CURVES["flat"]) >= 0.97


@pytest.mark.parametrize("speed", SPEEDS)
def test_good_drafts_pay_where_the_costs_given_were_wrong(speed):
    machine = Machine("cpu", SPEEDS[speed])
    assert decode(machine, lambda step: 0.8, 300, CURVES["steep"]) >= 1.3  # 1.7 where they are known


def test_useless_drafts_where_the_curve_itself_changes():
    """A machine that becomes busy, so that rows which cost nothing cost most of a step."""

    class Busier(Machine):
        def true(self, rows):
            self.curve = "flat" if self.step < 100 else "cpu"
            return super().true(rows)

    assert decode(Busier("flat"), lambda step: 0.0, 300, CURVES["flat"]) >= 0.97


def test_costs_on_the_device():
    curve, out = sdk.CostCurve({1: 1.0, 4: 1.2}, max_rows=6), torch.zeros(7, dtype=torch.float64)
    curve.observe(6, 0.5)
    curve.write_(out)
    expected = sdk.Budget(curve.costs()).cost(range(7))
    assert out.tolist() == pytest.approx(list(expected), rel=0.01) and out[0] == out[1] == 1.0


class Event:
    """A CUDA event that has passed when the device has come so far."""

    reached = now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        self.at = Event.now

    def query(self):
        return Event.reached >= self.at

    def elapsed_time(self, other):
        assert self.query() and other.query()
        return other.at - self.at


def test_a_device_is_measured_without_waiting_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    curve = sdk.CostCurve({1: 1.0, 4: 1.2}, max_rows=6)
    told = []
    monkeypatch.setattr(curve, "observe", lambda rows, seconds: told.append((rows, seconds)))
    timer = sdk.StepTimer(curve, "cuda")
    for number in range(5):
        Event.reached = 10.0 * (number - 2)  # two steps behind
        with timer.step(rows=1 + number):
            Event.now += 10.0  # milliseconds
    assert told == [(1, 0.01), (2, 0.01)]


def test_a_failed_step_is_not_learned():
    curve = sdk.CostCurve({1: 1.0, 4: 1.2}, max_rows=6)
    before = curve.costs()
    with pytest.raises(RuntimeError), sdk.StepTimer(curve).step(rows=4):
        raise RuntimeError
    assert curve.costs() == before


def ratio_after_pauses():
    curve = sdk.CostCurve({1: 1.0, 2: 1.1}, max_rows=4)
    for step in range(60):
        rows = 1 + step % 2
        pause = 3.0 if step in (30, 37, 44) else 0.0  # in steps of either size
        curve.observe(rows, 0.9 + 0.1 * rows + pause)
    return curve.costs()[2]


def test_pauses_do_not_change_the_curve(monkeypatch):
    assert ratio_after_pauses() == pytest.approx(1.1, rel=0.01)
    monkeypatch.setattr(sdk.CostCurve, "_pauses", lambda self, rows, strange: False)
    assert ratio_after_pauses() != pytest.approx(1.1, rel=0.03)


def test_a_step_that_stays_long_is_believed():
    curve = sdk.CostCurve({1: 1.0, 2: 1.1}, max_rows=4)
    for seconds in [1.0] * 20 + [4.0] * 3:  # the machine slows down
        curve.observe(1, seconds)
    assert curve.seconds(1) > 3.0


def test_doubts_fall_with_what_drafts_gain():
    curve = sdk.CostCurve({1: 1.0, 2: 1.1}, max_rows=4)
    for _ in range(20):
        curve.observe(1, 1.0)
        curve.observe(2, 1.1)
    assert curve.doubts(2, 1, tokens=1.0) and curve.doubts(2, 1, tokens=1.12)
    assert not curve.doubts(2, 1, tokens=1.3)
    for _ in range(2000):
        curve.observe(2, 1.1)  # nobody knows any more what one row costs
    assert curve.doubts(2, 1, tokens=2.0)

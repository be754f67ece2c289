# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels kept by form and launched directly."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from each import DEVICE
from triton import knobs
from triton.backends.compiler import GPUTarget

import specdec_kernels as sdk
from ptx_emulator import driver
from specdec_kernels.triton import dispatch
from specdec_kernels.triton.dispatch import Launch

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="needs the emulator")


@triton.jit
def _scale_kernel(x_ptr, out_ptr, other_ptr, n, stride, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i * stride, mask=i < n, other=0)
    if other_ptr is not None:
        x += tl.load(other_ptr + i, mask=i < n, other=0)
    tl.store(out_ptr + i, x * factor, mask=i < n)


def launch_of(device=None, **options):
    device = dispatch.device_of(torch.empty(1)) if device is None else device
    return Launch(_scale_kernel, device, dict(BLOCK=64), num_warps=1, **options)


def scaled(launch, n=5, stride=3, offset=0, dtype=torch.float32, other=None):
    x = torch.arange(offset + n * stride).to(dtype)[offset:]
    out = torch.zeros(n)
    launch((1, 1, 1), x, out, other, n, stride, 2.0)
    assert torch.equal(out, 2.0 * x[::stride][:n].float() + (0 if other is None else 2 * other))


def test_one_kernel_serves_all_numbers_and_addresses():
    launch, before = launch_of(), set(Launch.met)
    for n, stride, offset in ((5, 3, 0), (1, 1, 0), (16, 16, 0), (17, 1, 1), (64, 32, 16), (3, 2, 7)):
        scaled(launch, n, stride, offset)
    assert set(Launch.met) - before == {id(launch._compiled)}


def test_forms_that_a_key_confuses_are_noticed():
    launch = launch_of()
    scaled(launch)
    with pytest.raises(AssertionError, match="_scale_kernel: of one form"):
        scaled(launch, dtype=torch.float64)
    with pytest.raises(AssertionError, match="_scale_kernel: of one form"):
        scaled(launch, other=torch.ones(5))
    aligned = launch_of(aligned=("x_ptr", "stride"))
    scaled(aligned, stride=16)
    with pytest.raises(AssertionError, match="_scale_kernel: stride must be a multiple of 16 here, got 3"):
        scaled(aligned)
    fixed = launch_of(fixed=("stride",))
    scaled(fixed, stride=1)
    with pytest.raises(AssertionError, match="_scale_kernel: of one form"):
        scaled(fixed, stride=2)


@triton.jit
def _double_or_copy_kernel(x_ptr, out_ptr):
    x = tl.full([], 1.0, tl.float32)
    if dispatch.given(x_ptr):
        x = 2 * tl.load(x_ptr)
    tl.store(out_ptr, x)


def test_one_kernel_serves_calls_with_a_tensor_and_without():
    device = dispatch.device_of(torch.empty(1))
    launch = Launch(_double_or_copy_kernel, device, {}, optional=dict(x_ptr=torch.float32), num_warps=1)
    before, found = set(Launch.met), []
    for x in (None, torch.tensor([3.0]), None):
        launch((1, 1, 1), x, out := torch.zeros(1))
        found.append(out.item())
    assert found == [1.0, 6.0, 1.0]
    assert set(Launch.met) - before == {id(launch._compiled)}
    with pytest.raises(AssertionError, match="_double_or_copy_kernel: of one form"):
        launch((1, 1, 1), torch.ones(1, dtype=torch.float64), torch.zeros(1))


def test_products_and_sums_are_fused_whatever_tritons_default_is():
    launch = launch_of()
    scaled(launch)
    assert launch._compiled.metadata.enable_fp_fusion


class TwoGPUs(driver.EmulatorDriver):
    """An A100 and an H100, numbered as no other driver's devices are, each with a stream of its own."""

    def __init__(self):
        super().__init__(80)
        self.now, self.launched = 5, []
        self.get_current_device = lambda: self.now
        self.set_current_device = lambda device: setattr(self, "now", device)
        self.get_current_stream = lambda device: 100 + device
        self.launcher_cls = lambda source, metadata: self.recorded(driver.Launcher(source, metadata))

    def get_current_target(self):
        return GPUTarget("cuda", {5: 80, 6: 90}[self.now], 32)

    def recorded(self, launcher):
        def launch(x, y, z, stream, *rest):
            self.launched.append((self.now, stream))
            launcher(x, y, z, stream, *rest)

        return launch


def test_launches_follow_the_tensors_device(monkeypatch):
    gpus = TwoGPUs()
    monkeypatch.setattr(triton.runtime.driver, "_active", gpus)
    first, second = launch_of(5), launch_of(6)
    for launch in (first, second, first, second):
        scaled(launch)
    assert gpus.launched == [(5, 105), (6, 106)] * 2 and gpus.now == 5
    assert [launch._compiled.metadata.target.arch for launch in (first, second)] == [80, 90]


def test_an_operator_launches_on_the_device_of_its_tensors(monkeypatch):
    gpus = TwoGPUs()
    monkeypatch.setattr(triton.runtime.driver, "_active", gpus)
    monkeypatch.setattr("specdec_kernels.triton.sampling.device_of", lambda tensor: 6)
    logits = torch.eye(4)
    law = sdk.SamplingParams(0.0)
    assert sdk.sample(logits, law, backend="triton").tolist() == [0, 1, 2, 3]
    assert gpus.launched == [(6, 106)] * 2 and gpus.now == 5


def test_a_form_first_met_in_a_capture_is_refused(monkeypatch):
    launch, ready = launch_of(), launch_of()
    scaled(ready)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    scaled(ready)
    with pytest.raises(RuntimeError, match="_scale_kernel: .*specdec_kernels.warmup.* during a capture"):
        scaled(launch)


def test_hooks_of_launches_are_called():
    names = []

    def hook(metadata):
        names.append(metadata.get()["name"])

    launch = launch_of()
    scaled(launch)
    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        chain.add(hook)
    try:
        scaled(launch)
    finally:
        for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
            chain.remove(hook)
    scaled(launch)
    assert names == ["_scale_kernel"] * 2


def test_warming_compiles_and_does_not_launch():
    launch, out = launch_of(), torch.zeros(5)
    for instead in ("compile", "load"):
        with dispatch.warming(instead):
            launch((1, 1, 1), torch.ones(5), out, None, 5, 1, 2.0)
        assert launch._compiled is not None and (launch._run is None) == (instead == "compile")
        assert not out.any()
    scaled(launch)

# SPDX-License-Identifier: Apache-2.0
"""What the tests share."""

import os
from importlib.util import find_spec

# Processes test at once, and threads that wait for each other take time from them. Tests of threads ask torch
# for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import device
import each
import hypothesis
import pytest
import torch
import wide

import specdec_kernels

hypothesis.settings.register_profile("default", deadline=None, max_examples=40, print_blob=True)
hypothesis.settings.register_profile(
    "fast", parent=hypothesis.settings.get_profile("default"), max_examples=10
)
hypothesis.settings.load_profile("default")
each.emulate_gpu()
if each.DEVICE == "cpu":
    # Fills `torch.empty` with NaN or the largest integer. On a GPU torch would choose other kernels, too.
    torch.use_deterministic_algorithms(True, warn_only=True)

# The package does without its native core, transformers, and a Triton that is new enough for its kernels.
collect_ignore_glob = []
if each.NATIVE is None:
    collect_ignore_glob += ["test_c.py", "test_cpu_kernels.py"]
if "triton" not in each.BACKENDS:
    collect_ignore_glob += ["test_gpu_report.py", "test_launch.py", "test_ptx_*.py", "test_triton_*.py"]
if not find_spec("transformers"):
    collect_ignore_glob += [
        "test_custom_generate.py",
        "test_drafters.py",
        "test_generate*.py",
        "test_models.py",
    ]


LONGEST = ("test_triton_oldest.py", "test_gate.py", "test_gpu_report.py")


def pytest_collection_modifyitems(config, items):
    """The longest tests come first. Those that `wide.py` names are marked. Tests of the triton backend, and
    those that compile with inductor, say so in their names."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    names = [f"{item.path.name}::{item.name}" for item in items]
    if not any("::" in argument for argument in config.args) and (entries := wide.stale(names)):
        raise pytest.UsageError(f"tests/wide.py: no test is named by {entries}")
    for item, name in zip(items, names, strict=True):
        if wide.is_wide(name):
            item.add_marker(pytest.mark.wide)
        if "triton" in item.nodeid or "inductor" in item.name:
            item.add_marker(pytest.mark.slow)
        if "triton" in item.name and "triton" not in each.BACKENDS:
            item.add_marker(pytest.mark.skip(reason="needs Triton 3.4"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """A test that names the native backend is skipped where that was not built."""
    try:
        return (yield)
    except (ModuleNotFoundError, specdec_kernels.BackendUnavailable) as error:
        if each.NATIVE is None and ("cpu._native" in str(error) or "was not built" in str(error)):
            pytest.skip("needs the native core")
        raise


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same state of the default generator."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def operators_on_device(monkeypatch):
    """What tests call runs on the device under test."""
    for name in device.FUNCTIONS:
        monkeypatch.setattr(specdec_kernels, name, device.on_device(getattr(specdec_kernels, name)))
    for owner, name in device.METHODS:
        monkeypatch.setattr(owner, name, device.on_device(getattr(owner, name)))


@pytest.fixture
def untouched_memory(monkeypatch):
    """For tests that ask for more memory than they touch: it is not filled."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)

# SPDX-License-Identifier: Apache-2.0
"""What the tests share."""

import each
import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, max_examples=60, print_blob=True)
hypothesis.settings.load_profile("default")
each.emulate_gpu()


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same state of the default generator."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For tests whose models are too small to be worth more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

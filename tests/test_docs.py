"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import specdec_kernels

MODULES = [
    info.name
    for info in pkgutil.walk_packages(specdec_kernels.__path__, "specdec_kernels.")
    if ".cpu" not in info.name
]


@pytest.mark.parametrize("name", ["specdec_kernels", *MODULES])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", specdec_kernels.__all__)
def test_public_names_are_documented(name):
    assert getattr(specdec_kernels, name).__doc__

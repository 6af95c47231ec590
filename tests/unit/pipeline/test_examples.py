"""The examples in the docstrings of ``pipeline`` print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import pipeline

MODULES = [module.name for module in pkgutil.iter_modules(pipeline.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"pipeline.{name}")
    assert not doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed

"""Leave the longest tests to `FIT_TESTS=whole hatch test`, which .ci/run and ci.yml call."""

import os

import pytest

whole = pytest.mark.skipif(os.environ.get("FIT_TESTS") != "whole", reason="takes long: FIT_TESTS=whole hatch test")

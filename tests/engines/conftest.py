"""Tests of engines; those of the cluster and its storage need the extra `ray`."""

import importlib.util
import os

import pytest

NEEDED = ("ray", "fsspec", "s3fs")


def pytest_collection_modifyitems(items):
    """Without the extra "ray" its tests are skipped, unless TFINV_REQUIRE_RAY=1 makes them fail."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("TFINV_REQUIRE_RAY") != "1":
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))

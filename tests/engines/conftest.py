"""Tests of engines; those of the cluster and its storage need the extra `ray`."""

from tests.conftest import skip_without

NEEDED = ("ray", "fsspec", "s3fs")


def pytest_collection_modifyitems(items):
    """Without the extra "ray" its tests are skipped, unless TFINV_REQUIRE_RAY=1 makes them fail."""
    skip_without(items, "ray", NEEDED, "TFINV_REQUIRE_RAY")

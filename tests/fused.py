"""The fixture of every test that needs the fused ops."""

import os

import pytest

from tests.backend import BACKEND


@pytest.fixture(scope="session", name="fused")
def fused_fixture():
    """What the fused ops are; skips without them, but fails where TFINV_REQUIRE_FUSED=1 asks for them."""
    from tfinv.ops import build_info

    if BACKEND not in ("tensorflow", "jax"):
        pytest.skip(f"no fused ops for {BACKEND}")
    info = build_info()
    if not info.available:
        if os.environ.get("TFINV_REQUIRE_FUSED", "0") not in ("", "0"):
            pytest.fail(f"TFINV_REQUIRE_FUSED is set, but: {info.reason}")
        pytest.skip(info.reason)
    return info

"""The fixture of every test that needs the fused ops, and the choices of one that does not."""

import os

import pytest

from tests.backend import BACKEND

# Without fused ops for the backend, or with them switched off, "auto" is the reference once more.
_REFERENCE_ALONE = BACKEND == "torch" or os.environ.get("TFINV_DISABLE_FUSED", "0") not in ("", "0")
CHOICES = ["auto"] if _REFERENCE_ALONE else ["reference", "auto"]


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

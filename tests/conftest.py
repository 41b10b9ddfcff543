"""What every test shares: the golden numbers, small photographs, quiet devices."""

import os
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(os.environ.get("FMBOOST_GOLDEN", pathlib.Path(__file__).parents[2] / "shared" / "golden"))


def relative_error(found, expected) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="session")
def golden():
    """Reader of a file of numbers measured on the PyTorch reference (layout NCHW); skips where they are not at hand."""

    def read(name: str) -> dict[str, np.ndarray]:
        if not (GOLDEN / name).exists():
            pytest.skip(f"the reference's numbers are not here ({name}); FMBOOST_GOLDEN names their folder")
        with np.load(GOLDEN / name) as file:
            return dict(file)

    return read

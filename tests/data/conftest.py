"""Small datasets of random latents, as a fixture."""

import pytest

from tests import datasets


@pytest.fixture(scope="session")
def write_dataset():
    """Function (folder, records of each shard, recipe's changes) → DatasetInfo; latents are random."""
    return datasets.write_dataset

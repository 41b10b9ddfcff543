"""First stages: scaled and raw latents, and which specs are compatible."""

import dataclasses

import jax
import numpy as np
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.models.first_stage import FirstStage, Identity, LatentSpec

SPEC = LatentSpec("identity", "", 3, 1, scaling_factor=0.5, shift_factor=0.1)


def test_encode_and_decode_are_inverses_and_encode_raw_is_the_encoders_own_output():
    stage = FirstStage(SPEC, Identity())
    image = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3), minval=-1, maxval=1)
    np.testing.assert_array_equal(stage.encode_raw(image), image)
    np.testing.assert_allclose(stage.encode(image), (image - 0.1) * 0.5, atol=1e-6)
    np.testing.assert_allclose(stage.decode(stage.encode(image)), image, atol=1e-6)


@pytest.mark.parametrize("field", ["channels", "downsampling", "scaling_factor", "shift_factor"])
def test_a_spec_refuses_latents_of_other_numbers(field):
    SPEC.check(dataclasses.replace(SPEC, kind="kl", path="elsewhere"), "base")
    other = dataclasses.replace(SPEC, **{field: 2 * getattr(SPEC, field)})
    with pytest.raises(InputError, match=f"base: its autoencoder has {field}"):
        SPEC.check(other, "base")

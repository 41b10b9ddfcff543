"""First stages: scaled and raw latents, and which specs are compatible."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import FirstStage, Identity, LatentSpec

SPEC = LatentSpec("identity", "", 3, 1, scaling_factor=0.5, shift_factor=0.1)


def test_encode_and_decode_are_inverses_and_encode_raw_is_the_encoders_own_output():
    stage = FirstStage(SPEC, Identity())
    image = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3), minval=-1, maxval=1)
    np.testing.assert_array_equal(stage.encode_raw(image), image)
    np.testing.assert_allclose(stage.encode(image), (image - 0.1) * 0.5, atol=1e-6)
    np.testing.assert_allclose(stage.decode(stage.encode(image)), image, atol=1e-6)


class Weak(Identity):
    """Decodes 2z and encodes 0.4x, where the inverse is 0.5x."""

    def encode(self, image):
        return 0.4 * image, None

    def decode(self, latent):
        return 2 * latent


@pytest.mark.parametrize(("steps", "factor"), [(0, 0.4), (1, 0.48), (2, 0.496), (3, 0.4992)])
def test_steps_of_decoder_inversion_approach_the_inverse(steps, factor):
    stage = FirstStage(dataclasses.replace(SPEC, inversion_steps=steps), Weak())
    image = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3), minval=-1, maxval=1)
    np.testing.assert_allclose(stage.encode_raw(image), factor * image, atol=1e-6)
    np.testing.assert_allclose(stage.plain.encode_raw(image), 0.4 * image, atol=1e-6)


@pytest.mark.parametrize("name", ["demo-autoencoder", "photo-autoencoder"])
def test_decoder_inversion_improves_the_round_trip_of_a_trained_autoencoder(name):
    x = np.linspace(0, 6, 64)
    waves = [0.8 * np.sin(x)[:, None] * np.cos(k * x) for k in (1, 2, 3)]
    image = jnp.asarray(np.stack(waves, axis=-1)[None], jnp.float32)
    errors = []
    for steps in range(2):
        stage = load_first_stage("tiny", name, inversion_steps=steps)
        errors.append(float(jnp.mean(jnp.square(stage.decode(stage.encode(image)) - image))))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("field", ["channels", "downsampling", "scaling_factor", "shift_factor"])
def test_a_spec_refuses_latents_of_other_numbers(field):
    SPEC.check(dataclasses.replace(SPEC, kind="kl", path="elsewhere"), "base")
    other = dataclasses.replace(SPEC, **{field: 2 * getattr(SPEC, field)})
    with pytest.raises(InputError, match=f"base: its autoencoder has {field}"):
        SPEC.check(other, "base")

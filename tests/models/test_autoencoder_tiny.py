"""AutoencoderTiny against diffusers, a PyTorch model of its pool branch, and real weights on real photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.interop import load_autoencoder_tiny, state_dict
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig, Block
from tests.conftest import TAEF2, relative_error
from tests.random_models import random_model
from tests.torch_reference import randomised
from tests.torch_reference.autoencoder import TinyBlock

# An example takes seconds; to shrink a failing one would take minutes.
DEAR = (Phase.reuse, Phase.generate)


def nhwc(x) -> jax.Array:
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def nchw(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


@settings(max_examples=4, deadline=None, phases=DEAR)
@given(
    channels=st.sampled_from([4, 16, 32]),
    encoder=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_agrees_with_diffusers(channels, encoder, seed):
    diffusers = pytest.importorskip("diffusers")
    decoder = encoder[::-1]
    theirs = diffusers.AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(8,) * len(encoder),
        decoder_block_out_channels=(8,) * len(encoder),
        num_encoder_blocks=tuple(encoder),
        num_decoder_blocks=tuple(decoder),
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    theirs = randomised(theirs, seed)
    ours = load_autoencoder_tiny(theirs.state_dict(), dict(theirs.config))
    assert ours.config == AutoencoderTinyConfig(
        latent_channels=channels,
        width=8,
        encoder_blocks=tuple(encoder),
        decoder_blocks=tuple(decoder),
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    factor = 2 ** (len(encoder) - 1)
    image = torch.rand((2, 3, 4 * factor, 6 * factor), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latent, logvar = ours.encode(nhwc(image))
    assert logvar is None
    assert relative_error(nchw(latent), theirs.encode(image).latents) < 1e-5
    far = torch.randn((2, channels, 4, 6), generator=torch.Generator().manual_seed(seed)) * 5
    assert relative_error(nchw(ours.decode(nhwc(far))), theirs.decode(far).sample) < 1e-5


@pytest.mark.parametrize("pool", [False, True])
def test_block_agrees_with_the_pytorch_model(pool):
    theirs = randomised(TinyBlock(16, pool), 0)
    config = AutoencoderTinyConfig(width=16, encoder_blocks=(1,), decoder_blocks=(1,), pool=pool)
    weights = state_dict(random_model(AutoencoderTiny, config))
    weights |= {f"encoder.layers.1.{name}": value for name, value in theirs.state_dict().items()}
    ours: Block = load_autoencoder_tiny(weights, config).encoder.levels[0].blocks[0]
    x = torch.randn((2, 16, 5, 7), generator=torch.Generator().manual_seed(1))
    assert relative_error(nchw(ours(nhwc(x))), theirs(x)) < 1e-5


@pytest.mark.parametrize("names", ["taesd", "diffusers"])
def test_names_give_the_architecture(names):
    config = AutoencoderTinyConfig(
        latent_channels=32, width=8, encoder_blocks=(1, 2, 3), decoder_blocks=(3, 0, 1), pool=True
    )
    model = random_model(AutoencoderTiny, config)
    again = load_autoencoder_tiny(state_dict(model, names))
    assert again.config == config
    assert again.weight_names == names


def test_original_layer_numbers():
    """The numbers of FLUX.2's published files: convolutions 0, 2, 6, 10, 14 down and 1, 7, 12, 17, 19 up."""
    names = state_dict(random_model(AutoencoderTiny, AutoencoderTinyConfig(width=8)), "taesd")
    convs = {name.removesuffix(".weight") for name in names if name.count(".") == 2 and name.endswith("weight")}
    down, up = (0, 2, 6, 10, 14), (1, 7, 12, 17, 19)
    assert convs == {f"encoder.{n}" for n in down} | {f"decoder.{n}" for n in up}
    unbiased = {"encoder.2", "encoder.6", "encoder.10", "decoder.7", "decoder.12", "decoder.17"}
    assert {conv for conv in convs if f"{conv}.bias" not in names} == unbiased


def test_a_part_is_decoded_as_within_its_image():
    """The pool branch has the statistics of the whole latent; a part alone has others, and so other colours."""
    config = AutoencoderTinyConfig(width=8, encoder_blocks=(0, 1), decoder_blocks=(1, 0), pool=True)
    model = random_model(AutoencoderTiny, config)
    latent = jax.random.normal(jax.random.key(0), (2, 12, 12, 4)) * jnp.linspace(0.1, 2, 12)[:, None, None]
    # Two convolutions follow at the image's size: pixels at the part's edges differ.
    whole = model.decode(latent)[:, 6:18, 8:20]
    part = model.decode_part(latent, jnp.array([2, 3]), 8)[:, 2:-2, 2:-2]
    alone = model.decode(latent[:, 2:10, 3:11])[:, 2:-2, 2:-2]
    np.testing.assert_allclose(part, whole, atol=1e-5)
    assert float(jnp.abs(alone - whole).max()) > 1e-2


def test_size_that_cannot_be_halved_is_refused():
    model = random_model(AutoencoderTiny, AutoencoderTinyConfig(width=8))
    with pytest.raises(InputError, match=r"20×16 pixels.*multiples of 8"):
        model.encode(jnp.zeros((1, 20, 16, 3)))


# PSNR and SSIM of the round trip, measured with the original code on the top left multiple of 16 pixels.
MEASURED = {"coffee": (29.62, 0.884), "chelsea": (32.70, 0.924)}


@pytest.mark.parametrize("photo", MEASURED)
def test_real_weights_on_real_photographs(photo):
    if not TAEF2.exists():
        pytest.skip("the real weights are not here; FMBOOST_TAEF2 names their folder")
    skimage_data = pytest.importorskip("skimage.data")
    from skimage.metrics import structural_similarity

    stage = load_first_stage("tiny", str(TAEF2))
    pixels = getattr(skimage_data, photo)()
    height, width = (side // 16 * 16 for side in pixels.shape[:2])
    image = pixels[:height, :width].astype(np.float32) / 255
    decoded = stage.decode(stage.encode(jnp.asarray(image[None] * 2 - 1)))
    found = np.clip(np.asarray(decoded)[0] / 2 + 0.5, 0, 1)
    psnr = -10 * np.log10(np.mean((found - image) ** 2))
    ssim = structural_similarity(image, found, channel_axis=2, data_range=1)
    assert psnr == pytest.approx(MEASURED[photo][0], abs=0.01)
    assert ssim == pytest.approx(MEASURED[photo][1], abs=0.001)

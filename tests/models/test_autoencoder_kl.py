"""AutoencoderKL against the reference's numbers, a PyTorch model, diffusers, and itself in row chunks."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.interop import load_autoencoder_kl
from fmboost_jax.models import attention, row_chunks
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.parameters import abstract
from tests.conftest import relative_error
from tests.torch_reference import autoencoder as twin
from tests.torch_reference import randomised, recorded

SMALL = AutoencoderKLConfig(channels=(32, 64), blocks=1)


def nhwc(x) -> jax.Array:
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def nchw(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def pair(config: AutoencoderKLConfig, seed: int = 0) -> tuple[AutoencoderKL, twin.AutoencoderKL]:
    """Ours and the twin with the same random weights."""
    theirs = randomised(twin.AutoencoderKL(config), seed)
    return load_autoencoder_kl(theirs.state_dict(), config), theirs


def test_reference_numbers(golden):
    file = golden("autoencoder_kl.npz")
    weights = {name.removeprefix("param/"): value for name, value in file.items() if name.startswith("param/")}
    model = load_autoencoder_kl(weights, json.loads(str(file["config"])))
    mean, logvar = model.encode(nhwc(file["in/image"]))
    assert relative_error(nchw(mean), file["out/mean"]) < 1e-5
    assert relative_error(nchw(logvar), file["out/logvar"]) < 1e-5
    assert relative_error(nchw(model.decode(nhwc(file["in/z"]))), file["out/decoded"]) < 1e-5


# An example takes seconds; to shrink a failing one would take minutes.
DEAR = (Phase.reuse, Phase.generate)

architectures = st.fixed_dictionaries(
    {
        "image_channels": st.sampled_from([1, 3]),
        "latent_channels": st.sampled_from([4, 16]),
        "channels": st.lists(st.sampled_from([32, 64]), min_size=1, max_size=3).map(tuple),
        "blocks": st.integers(1, 2),
        "quant_convs": st.booleans(),
        "mid_attention": st.booleans(),
    }
)


@settings(max_examples=4, deadline=None, phases=DEAR)
@given(architecture=architectures, seed=st.integers(0, 1000), height=st.integers(1, 3), width=st.integers(1, 3))
def test_agrees_with_the_pytorch_model(architecture, seed, height, width):
    config = AutoencoderKLConfig(**architecture)
    ours, theirs = pair(config, seed)
    size = (height * 2 * config.downsampling, width * 2 * config.downsampling)
    image = torch.rand((2, config.image_channels, *size), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    mean, logvar = theirs.encode(image)
    found_mean, found_logvar = ours.encode(nhwc(image))
    assert relative_error(nchw(found_mean), mean) < 1e-5
    assert relative_error(nchw(found_logvar), logvar) < 1e-5
    assert relative_error(nchw(ours.decode(nhwc(mean))), theirs.decode(mean)) < 1e-5


def test_agrees_with_the_pytorch_model_layer_by_layer():
    config = AutoencoderKLConfig(channels=(32, 64), blocks=2)
    ours, theirs = pair(config)
    calls = recorded(theirs, torch.randn((1, 3, 16, 24), generator=torch.Generator().manual_seed(0)))
    layers = {
        "encoder.down.0.block.1": ours.encoder.levels[0].blocks[1],
        "encoder.down.1.block.0": ours.encoder.levels[1].blocks[0],
        "encoder.down.0": ours.encoder.levels[0],
        "encoder.mid.attn_1": ours.encoder.middle.attention,
        "encoder.mid": ours.encoder.middle,
        "encoder": ours.encoder,
        "decoder.mid.block_1": ours.decoder.middle.block1,
        "decoder.up.1": ours.decoder.levels[0],
        "decoder.up.0.block.0": ours.decoder.levels[1].blocks[0],
        "decoder.up.0": ours.decoder.levels[1],
        "decoder": ours.decoder,
    }
    errors = {
        name: relative_error(nchw(layer(nhwc(calls[name][0][0]))), calls[name][1]) for name, layer in layers.items()
    }
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    "settings",
    [
        {"latent_channels": 4},
        {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06},
        {"latent_channels": 4, "mid_block_add_attention": False, "norm_num_groups": 8},
    ],
)
def test_agrees_with_diffusers(settings):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=2,
        **settings,
    )
    theirs = randomised(theirs, 3)
    ours = load_autoencoder_kl(theirs.state_dict(), dict(theirs.config))
    assert ours.config.shift_factor == settings.get("shift_factor", 0.0)
    image = torch.randn((1, 3, 16, 8), generator=torch.Generator().manual_seed(1))
    expected = theirs.encode(image).latent_dist
    mean, logvar = ours.encode(nhwc(image))
    assert relative_error(nchw(mean), expected.mean) < 1e-5
    assert relative_error(nchw(logvar), expected.logvar) < 1e-5
    assert relative_error(nchw(ours.decode(mean)), theirs.decode(expected.mean).sample) < 1e-5


@pytest.mark.parametrize(("positions", "height", "width", "block"), [(30, 9, 5, 7), (130, 6, 8, 48)])
def test_row_chunks_and_query_blocks_are_exact(positions, height, width, block):
    model, _ = pair(SMALL)
    latent = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    image = jax.random.uniform(jax.random.key(1), (2, 2 * height, 2 * width, 3), minval=-1.0)
    graphdef, state = nnx.split(model)

    def both(state, latent, image):
        model = nnx.merge(graphdef, state)
        return model.decode(latent), *model.encode(image)

    whole = jax.jit(both)(state, latent, image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_chunks, "CHUNK_POSITIONS", positions)
        patch.setattr(attention, "QUERY_BLOCK", block)
        # A new function, or jit would answer with what it compiled before.
        cut = jax.jit(lambda *arguments: both(*arguments))(state, latent, image)
    for expected, found in zip(whole, cut, strict=True):
        assert relative_error(found, expected) < 2e-6


@settings(max_examples=20, deadline=None)
@given(height=st.integers(3, 17), rows=st.integers(1, 20), start=st.integers(0, 16))
def test_window_of_a_chunk_is_a_slice_of_the_padded_map(height, rows, start):
    rows = rows if rows + 2 < height else height
    start = min(start, height - rows)
    x = np.arange(1, height * 2 + 1, dtype=np.float32).reshape(1, height, 2, 1)
    chunk = row_chunks.RowChunk(start, rows, height)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    np.testing.assert_array_equal(chunk.of(jnp.asarray(x)), x[:, start : start + rows])
    np.testing.assert_array_equal(chunk.window(jnp.asarray(x)), padded[:, start : start + rows + 2])


@pytest.mark.parametrize("count", [2, 4])
def test_strips_change_nothing(count):
    model, _ = pair(SMALL)
    latent = jax.random.normal(jax.random.key(0), (2, 8, 5, 4))
    whole, found = model.decoder(latent), model.decoder._decode_strips(latent, count)
    assert relative_error(found, whole) < 3e-6


def test_tpus_decode_in_strips_gpus_whole_images_cpus_in_chunks(monkeypatch):
    monkeypatch.setattr(row_chunks, "CHUNK_POSITIONS", 8 * 6)
    model, _ = pair(SMALL)
    latent = jax.ShapeDtypeStruct((2, 8, 6, 4), jnp.float32)
    traced = jax.jit(model.decoder.__call__).trace(latent)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("tensor<16x1x6x" in text) == (platform == "tpu")
        assert ("stablehlo.while" in text) == (platform == "cpu")


def test_a_whole_image_is_decoded_as_in_chunks(monkeypatch):
    model, _ = pair(SMALL)
    latent = jax.random.normal(jax.random.key(0), (2, 8, 5, 4))
    whole = model.decoder._decode(latent, strips=1)
    monkeypatch.setattr(row_chunks, "CHUNK_POSITIONS", 30)
    assert relative_error(model.decoder._decode(latent), whole) < 3e-6


def test_strips_are_for_large_maps_that_fit():
    def strips(*shape, dtype="bfloat16"):
        return row_chunks.strips_of(jnp.zeros((1, *shape, 4), dtype), 8, 256)

    assert strips(128, 128) == strips(128, 128, dtype="float32") == 32
    assert strips(112, 128) == 16
    assert strips(72, 128) == 8
    assert strips(68, 128) == strips(32, 32) == strips(256, 256) == 1


def test_the_small_limit_cuts_maps_into_chunks():
    """The comparison above needs maps that are divided into chunks."""
    x = jnp.arange(7 * 5.0).reshape(1, 7, 5, 1)
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_chunks, "CHUNK_POSITIONS", 10)
        out = row_chunks.map_row_chunks(lambda chunk: rows.append(chunk.rows) or chunk.of(x), x)
    assert set(rows) == {2}
    np.testing.assert_array_equal(out, x)


def test_memory_of_a_decode_is_bounded():
    """XLA's own account of its temporaries; weights and the runtime add 0.9 GiB (measured by bench/decode.py)."""
    graphdef, state = nnx.split(abstract(AutoencoderKL, AutoencoderKLConfig()))
    latent = jax.ShapeDtypeStruct((1, 256, 256, 4), jnp.float32)
    compiled = jax.jit(lambda state, z: nnx.merge(graphdef, state).decode(z)).lower(state, latent).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 9.5 * 2**30


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    exact, _ = pair(SMALL)
    rough, _ = pair(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough, nnx.Param))} == {jnp.dtype("float32")}
    latent = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    image = rough.decode(latent)
    assert image.dtype == jnp.float32
    assert 1e-4 < relative_error(image, exact.decode(latent)) < 3e-2


def test_size_that_cannot_be_halved_is_refused():
    model, _ = pair(SMALL)
    with pytest.raises(InputError, match=r"15×16 pixels.*multiples of 2"):
        model.encode(jnp.zeros((1, 15, 16, 3)))


def test_sd_has_the_known_number_of_parameters():
    model = abstract(AutoencoderKL, AutoencoderKLConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 83_653_863

"""The demo's first stage: a tiny autoencoder, 8× smaller, 16 channels, trained on a few hundred photographs.

    python tools/split_photos.py PHOTOS SPLIT
    python -m fmboost_jax.train_autoencoder --config configs/autoencoder_demo.py \
        --config.data.dir=SPLIT/train --config.evaluate.dir=SPLIT/held_out --workdir RUN

The run ends with RUN/autoencoder/, which every `first_stage.path` of kind "tiny" and diffusers' AutoencoderTiny take.
The result is in fmboost_jax/assets/demo-autoencoder/, with the numbers in its README.md and in
docs/weights.md. It is for the demo and the tests; latents of Stable Diffusion need Stable Diffusion's autoencoder.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import defaults
from fmboost_jax.training.config import AutoencoderTrainingConfig


def get_config() -> ConfigDict:
    """The autoencoder's config."""
    config = defaults(AutoencoderTrainingConfig)
    config.seed = 0

    config.data.dir = None  # photographs; all are held in memory, decoded
    config.data.crop = 96  # side of the random crops, pixels
    config.data.crop_scale = 2.0  # largest side of a crop, in units of `crop`, before it is resized
    config.data.num_threads = 2
    config.data.prefetch = 8  # batches read ahead

    # See fmboost_jax.models.autoencoder_tiny.AutoencoderTinyConfig. A step of TAESD's own levels (patch_size 1, four
    # levels) costs thirty times as much; in the same time they reached 24 dB.
    config.autoencoder.patch_size = 8
    config.autoencoder.latent_channels = 16
    config.autoencoder.width = 96
    config.autoencoder.encoder_blocks = (2,)
    config.autoencoder.decoder_blocks = (4,)
    config.autoencoder.dtype = "float32"

    config.loss.scales = 4  # sizes 1, 1/2, 1/4, 1/8 at which images are compared
    config.loss.gradient = 0.25  # weight of their gradients beside L1
    config.loss.deviation = 0.5  # of the latents; outliers are then within the decoder's bound of 3
    config.loss.moments = 0.002  # weight of the terms for mean 0, this deviation and uncorrelated channels
    # Weight of the error of decoded enlarged latents: ×2 and ×4, a quarter of the batch each.
    config.loss.enlarged = 0.1
    # Weight of the error of the round trip of small images enlarged ×2 and ×4, a quarter of the batch each. Flows start
    # from such images.
    config.loss.blurred = 0.0
    config.loss.boosted = 1.0  # weight of the error of decoded boosts, where train.boosters names boosters
    config.loss.rmse = 0.0  # weight of each image's root mean square error, which is what PSNR measures
    config.loss.latent_noise = 0.02  # standard deviation of the noise on the decoder's input
    config.loss.perceptual = 0.0  # weight of the distance in feature maps of efficientnet-lite0

    # Muon updates the kernels, Adam the biases; both rates fall to 0 along a cosine.
    config.optim.lr = 1e-3
    config.optim.momentum = 0.95
    config.optim.bias_lr = 2e-4
    config.optim.b1 = 0.9
    config.optim.b2 = 0.99
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 1.0

    config.ema.decay = 0.995
    config.ema.copy_until = 200
    config.ema.takes_in = "after"  # parameters of each update; "before": as they were before it

    config.train.steps = 12000
    config.train.batch_size = 8
    config.train.log_every = 50
    config.train.nan_patience = 3
    config.train.tracker = ""
    config.train.init_from = ""  # folder of an autoencoder to start from, instead of the best linear code
    config.train.decoder_only = False  # True: the encoder and all latents stay unchanged
    # Boosters of this encoder's latents, such as ("photo-x2", "photo-x4"): the decoder learns to decode what they make
    # of small images. Needs decoder_only. Each booster takes a quarter of the batch.
    config.train.boosters = ()

    config.checkpoint.every = 1000
    config.checkpoint.keep = 2

    config.evaluate.every = 1000  # 0 for the end only
    config.evaluate.dir = ""  # held-out photographs; the training data's where empty
    config.evaluate.size = 256  # side of the centred squares that are measured, shrunk where the photograph is larger
    config.evaluate.images = 24
    return config

"""The demo: ×2 (variant `x4`: ×4) on real photographs, on the latents of the packaged autoencoder.

    python -m fmboost_jax.precompute --config configs/demo.py --images SPLIT/train --out DATA
    python -m fmboost_jax.train --config configs/demo.py --config.data.dir=DATA --workdir RUN
    python -m fmboost_jax.export --checkpoint RUN --out BUNDLE

`make demo` runs the same on a few photographs, with fewer steps.

This file explains every field. The other configs set fewer fields; the rest has the defaults of
`fmboost_jax.training.config.TrainingConfig`.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import defaults
from fmboost_jax.registry import choose
from fmboost_jax.training.config import TrainingConfig

LOW_RES = {"": 128, "x4": 64}


def get_config(variant: str = "") -> ConfigDict:
    """The demo's config, of variant "" (×2) or "x4"."""
    low_res = choose("variant", variant, LOW_RES)
    config = defaults(TrainingConfig)
    config.seed = 0

    # The frozen autoencoder: "identity" (pixels as latents), "kl" (Stable Diffusion's) or "tiny" (TAESD's family).
    config.first_stage.kind = "tiny"
    config.first_stage.path = "demo-autoencoder"  # folder, packaged name or hub id of its weights
    config.first_stage.dtype = "float32"  # what it computes in, or "bfloat16"
    # Steps of decoder inversion after the encoder (arXiv 2409.18442): each decodes and encodes once more, and the
    # latent decodes to an image closer to the one that was encoded. For TAEF2, 1 is much better than 0.
    config.first_stage.inversion_steps = 0

    config.data.dir = None  # what precompute wrote
    config.data.low_res = low_res  # images' sizes in pixels, square
    # Networks trained on crops of 128² do worse on whole photographs (docs/weights.md).
    config.data.high_res = 256
    # "psu": enlarged as an image, bilinearly, then encoded; "psu_bicubic": the same, bicubically; "lsu": encoded small.
    config.data.upsampling = "psu"
    # What "psu" enlarges: "pixels" (the small photograph), "latents" (that photograph after a round trip through the
    # autoencoder: what there is where small latents come in), or "mixed" (half of each).
    config.data.low_res_source = "pixels"
    config.data.crops = 16  # random crops a photograph; 0 for one from the centre
    config.data.crop_scale = 2.0  # largest side of a random crop in units of high_res; smaller ones are native pixels
    config.data.dtype = "float16"  # of stored latents
    config.data.images = False  # keep the images beside the latents, for the finish's terms on images
    config.data.num_threads = 4
    config.data.prefetch = 8  # batches read ahead

    # Where the flow starts: "low_res" (the upsampled latent with the noise of diffusion step `noise_step` of 1000) or
    # "noise".
    config.source.start = "low_res"
    # The paper's value is 400 (docs/method.md explains it). Small networks that are trained briefly leave a grain of
    # noise; for them 0, no noise, was best (docs/weights.md).
    config.source.noise_step = 0
    config.source.mode = "bilinear"  # how "lsu" latents are upsampled: nearest, bilinear, bicubic, noise
    config.source.context_mode = None  # the same for the context alone, where it differs from x0

    config.path = "linear"  # or "gvp"; with settings as in "linear(sigma_min=0.001)"
    config.objective = "flow"  # what the network learns, with settings as in "flow(time='logit_normal')"

    # The velocity network: "unet", whose settings are the section `unet`. See fmboost_jax.models.unet.UNetConfig;
    # in_channels = state + context.
    config.network = "unet"
    config.unet.in_channels = 32
    config.unet.out_channels = 16
    config.unet.model_channels = 64
    config.unet.channel_mult = (1, 2)
    config.unet.num_res_blocks = 1
    config.unet.attention_resolutions = ()  # the middle block attends in any case; more attention gained nothing here
    config.unet.num_heads = 1
    config.unet.dim_head = 64
    config.unet.dropout = 0.0
    config.unet.conv_resample = True
    config.unet.use_linear_attn = False
    config.unet.use_scale_shift_norm = True
    config.unet.pool_factor = 1
    config.unet.attention_layout = "heads"
    config.unet.dtype = "float32"  # "bfloat16" on TPUs and GPUs
    config.unet.remat = False
    config.unet.time_inputs = 1  # 2 for the objectives "shortcut" and "meanflow"

    # Terms beside the objective's own loss, on the result of one step; 0 leaves a term out.
    config.finish.velocity = 1.0  # the objective's own loss; 0: a map for one step, at half the cost of an update
    config.finish.latent = 0.0  # mean square error of the latent
    config.finish.pixels = 0.0  # root mean square error of each image
    config.finish.perceptual = 0.0  # distance in feature maps of efficientnet-lite0
    config.finish.consistency = 0.0  # root mean square error at the small image's size
    config.finish.grid = 0.0  # the part of the error that repeats from one latent position to the next
    config.finish.detail = 0.0  # root mean square error that consistency with the small image leaves
    config.finish.adversarial = 0.0  # judgement of a patch discriminator, which is trained beside the network
    config.finish.discriminator = "latents"  # what it sees, or "images": feature maps of efficientnet-lite0
    config.finish.discriminator_width = 64  # channels of its first convolution
    config.finish.discriminator_every = 2  # updates of the network for one of the discriminator
    config.finish.discriminator_rate = 1.0  # the discriminator's learning rate over the network's
    config.finish.crop = 0  # side of the decoded part, latent positions; 0: all of it

    config.optim.lr = 5e-4
    config.optim.warmup_steps = 100
    config.optim.warmup_offset = 0  # 1: the first update has a rate above 0, as in the reference (docs/method.md)
    config.optim.decay_steps = 0  # updates until the rate has fallen to 0 along a cosine; 0: it stays
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.clip_norm = 1.0  # 0 for none
    config.optim.accumulate = 1  # sequential parts of a batch, for less memory

    config.ema.decay = 0.999
    config.ema.copy_until = 100  # updates until which the average is a copy
    config.ema.takes_in = "after"  # the parameters after each update; "before": those before it, as in the reference

    config.train.steps = 3000  # x4 takes as many more, from the weights of ×2
    config.train.batch_size = 4  # over all devices
    config.train.log_every = 50
    config.train.nan_patience = 3  # steps within which a loss that is not finite ends the run
    config.train.tracker = ""  # "wandb" or "trackio": keeps the metrics and pictures, too
    config.train.init_from = ""  # bundle, packaged name or run whose averaged weights to start from

    config.checkpoint.every = 500
    config.checkpoint.keep = 3  # the last ones
    config.checkpoint.keep_every = 0  # and every one whose step is a multiple of this; 0 for none

    config.evaluate.every = 500  # 0 for never
    config.evaluate.dir = ""  # held-out latents; the training data's where empty
    # The folder that this dataset was made of: with it, images are compared with the photographs, too.
    config.evaluate.photographs = ""
    config.evaluate.images = 16
    config.evaluate.method = "euler"
    config.evaluate.steps = 4

    # Devices along each axis; −1 takes those that are left.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.spatial = 1

    # Seconds without a heartbeat of one process after which all others end and can be restarted (docs/pods.md).
    config.processes.timeout = 60

    # First and last step of a profile, such as 10,20; () for none.
    config.profile.steps = ()

    # Where compiled programs are kept: "auto" (~/.cache/fmboost_jax, or the run's folder with many processes), a
    # folder, or "" for nowhere.
    config.compilation_cache = "auto"
    return config

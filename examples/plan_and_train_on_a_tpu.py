# %% [markdown]
# # Plan and train on a TPU
#
# The plan needs no TPU: `pip install ".[tpu]"` installs the compiler. Then the same config trains on a Colab
# TPU, a TPU VM, or a slice of many hosts.

# %% [markdown]
# Memory, step time and MFU of the paper's network on four v5e chips:

# %%
import os

from fmboost_jax import plan

settings = ["--config", "cfm1024", "--topology", "v5e:2x2", "--batch-per-chip", "8"]
if "FMBOOST_SMALL" in os.environ:  # set where this notebook is tested
    settings += ["--config.unet.model_channels=32", "--config.unet.channel_mult=(1,)", "--config.data.high_res=64"]
    settings += ["--config.unet.num_res_blocks=1", "--config.unet.attention_resolutions=()", "--config.data.low_res=32"]
plan.main(settings)

# %% [markdown]
# The devices of this machine. On Colab, choose Runtime → Change runtime type → TPU.

# %%
import jax

jax.devices()

# %% [markdown]
# Training, with your latent pairs in `DATA`; the batch is split over all chips. `launch/tpu.sh` does the same on every
# host of a slice.

# %%
from fmboost_jax import train

DATA = "DATA"
if jax.default_backend() == "tpu":
    train.main(["--config", "cfm1024", f"--config.data.dir={DATA}", "--workdir", "run"])

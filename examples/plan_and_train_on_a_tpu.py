# %% [markdown]
# # Plan and train on a TPU
#
# The plan needs no TPU: `pip install ".[tpu]"` installs the compiler. Then the same config trains on a Colab
# TPU, a TPU VM, or a slice of many hosts.

# %% [markdown]
# Memory, step time and MFU of the paper's network on four v5e chips:

# %%
from fmboost_jax import plan

plan.main(["--config", "cfm1024", "--topology", "v5e:2x2", "--batch-per-chip", "8"])

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

# %% [markdown]
# # From a prompt to 1024²
#
# A text-to-image pipeline of diffusers samples a small latent; a booster that was trained on its autoencoder's latents
# enlarges it. This needs `pip install ".[diffusers]"`, a base model, and such a booster. `flux2-x2`, for FLUX.2, comes
# with the package; for Stable Diffusion none does.

# %%
import os

from fmboost_jax import Booster
from fmboost_jax.boosting import boost_pipeline, load_pipeline

BASE = os.environ.get("FMBOOST_BASE", "BASE_FOLDER_OR_ID")
BOOSTER = os.environ.get("FMBOOST_BOOSTER", "BOOSTER_FOLDER_OR_ID")
SMALL = "FMBOOST_SMALL" in os.environ  # set where this notebook is tested

# %%
pipe = load_pipeline(BASE)
booster = Booster.from_pretrained(BOOSTER)
booster

# %% [markdown]
# `base_steps` are the base model's, `steps` the booster's. 64 × 64 latents become 128 × 128, which decode to 1024².

# %%
side = 16 if SMALL else 512
images = boost_pipeline(pipe, "a red fox in snow", booster, base_steps=4, steps=4, height=side, width=side)
images.shape

# %% [markdown]
# # Train on your own photographs
#
# All steps: latent pairs, training, a bundle, a boosted photograph. With the demo's config they run on a
# CPU in minutes; for Stable Diffusion's latents use `cfm1024` and an accelerator.

# %%
import os
import pathlib
import tempfile

import skimage.data
from PIL import Image

from fmboost_jax import Booster, export, precompute, train

SMALL = "FMBOOST_SMALL" in os.environ  # set where this notebook is tested

# %% [markdown]
# Put your photographs here. These are three of scikit-image's.

# %%
work = pathlib.Path(tempfile.mkdtemp())
photographs = work / "photographs"
photographs.mkdir()
for name in ("astronaut", "chelsea", "rocket"):
    Image.fromarray(getattr(skimage.data, name)()).save(photographs / f"{name}.png")

# %%
settings = ["--config", "demo", "--config.data.crops=8"]
if SMALL:
    settings += ["--config.data.high_res=64", "--config.data.low_res=32", "--config.unet.model_channels=32"]
    settings += ["--config.train.batch_size=8", "--config.unet.channel_mult=(1,)", "--config.unet.num_res_blocks=1"]
precompute.main([*settings, "--images", str(photographs), "--out", str(work / "data")])

# %%
updates = 2 if SMALL else 500
train.main(
    [*settings, f"--config.data.dir={work / 'data'}", f"--config.train.steps={updates}", "--workdir", str(work / "run")]
)

# %% [markdown]
# A bundle can be shared: `booster.push_to_hub("owner/name")` uploads it.

# %%
export.main(["--checkpoint", str(work / "run"), "--out", str(work / "bundle")])
booster = Booster.from_pretrained(work / "bundle")
photograph = Image.fromarray(skimage.data.coffee()).resize((64, 64))
booster(photograph).size

# %% [markdown]
# # Upscale a photograph
#
# The packaged booster enlarges a photograph ×2. Install the packages first: `pip install ".[demo]"` in a checkout.

# %%
import os

import matplotlib.pyplot as plt
import skimage.data
from PIL import Image

from fmboost_jax import Booster

SMALL = "FMBOOST_SMALL" in os.environ  # set where this notebook is tested

# %% [markdown]
# The weights were not trained on this photograph. Use your own: `photograph = Image.open("photo.jpg")`.

# %%
photograph = Image.fromarray(skimage.data.coffee()).crop((130, 80, 386, 336))
if SMALL:
    photograph = photograph.resize((48, 48))

# %%
booster = Booster.from_pretrained("photo-x2")
booster

# %%
large = booster(photograph)
bicubic = photograph.resize(large.size, Image.Resampling.BICUBIC)
large.size

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 6))
for axis, image, title in zip(axes, (bicubic, large), ("bicubic", "boosted"), strict=True):
    axis.imshow(image)
    axis.set_title(title)
    axis.axis("off")

# %% [markdown]
# ×4: `photo-x4` is closer to an original, `photo-x4-looks` has more texture.

# %%
small = photograph.reduce(2)
names = ("photo-x4", "photo-x4-looks")
images = [small.resize((4 * small.width, 4 * small.height), Image.Resampling.BICUBIC)]
images += [Booster.from_pretrained(name)(small) for name in names]
figure, axes = plt.subplots(1, 3, figsize=(18, 6))
for axis, image, title in zip(axes, images, ("bicubic", *names), strict=True):
    axis.imshow(image)
    axis.set_title(title)
    axis.axis("off")

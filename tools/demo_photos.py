"""Write the demo's photographs, which scikit-image and scikit-learn ship, as PNG: `train/` and `held_out/`.

python tools/demo_photos.py OUT
"""

import pathlib
import sys

import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

TRAIN = ("astronaut", "rocket", "hubble_deep_field", "retina", "chelsea")
HELD_OUT = ("coffee",)


def main() -> None:
    """The command."""
    out = pathlib.Path(sys.argv[1])
    china, flower = load_sample_images().images
    left = skimage.data.stereo_motorcycle()[0]
    train = {name: getattr(skimage.data, name)() for name in TRAIN} | {"motorcycle": left, "china": china}
    held_out = {name: getattr(skimage.data, name)() for name in HELD_OUT} | {"flower": flower}
    for folder, photos in (("train", train), ("held_out", held_out)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for name, pixels in photos.items():
            Image.fromarray(pixels).save(out / folder / f"{name}.png")
    print(f"{len(train)} photographs to train on and {len(held_out)} held out in {out}")


if __name__ == "__main__":
    main()

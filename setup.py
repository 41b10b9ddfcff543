"""Where packages come from; pyproject.toml has the metadata. A wheel carries `configs/` as `fmboost_jax/configs/`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["fmboost_jax", "fmboost_jax.*"]),
        "fmboost_jax.configs",
        "fmboost_jax.configs.protocols",
    ],
    package_dir={"fmboost_jax.configs": "configs"},
    package_data={"fmboost_jax": ["py.typed"], "fmboost_jax.assets": ["*/*"]},
)

"""Boosters written to bundles and uploaded to the Hugging Face hub, by the conventions of `huggingface_hub`.

`Booster.from_pretrained` reads both.
"""

import os
import pathlib
import tempfile
import warnings

from fmboost_jax.boosting.bundle import BundleConfig, write_bundle
from fmboost_jax.errors import InputError, one_line
from fmboost_jax.files import atomic_folder
from fmboost_jax.models.parameters import Parameters


class Shareable:
    """Methods that write and upload a booster's bundle.

    Attributes:
        parameters: the network's.
        config: contents of its bundle's `config.json`; None for a booster that was not loaded.
    """

    parameters: Parameters
    config: BundleConfig | None = None

    def save_pretrained(self, folder: str | os.PathLike, *, dtype: str = "float32") -> None:
        """Write a bundle, which `from_pretrained` reads: weights, config and model card.

        Args:
            folder: must not exist yet; it is written atomically.
            dtype: "float32", or "float16" for half the size.

        Raises:
            InputError: the folder exists, another dtype, or a booster that was not loaded.
        """
        if self.config is None:
            raise InputError("this booster was not loaded, so its training is unknown; load it, or export its run")
        if dtype not in ("float32", "float16"):
            raise InputError(f"dtype {dtype!r} is unknown; expected one of float32, float16")
        with atomic_folder(folder) as temporary:
            write_bundle(temporary, self.parameters, self.config, dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: str = "float32",
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload a booster",
        tag: str | None = None,
    ) -> str:
        """Upload a bundle to the Hugging Face hub, where `from_pretrained(repo_id)` reads it.

        Args:
            repo_id: `owner/name`; created if needed.
            dtype: see `save_pretrained`.
            private: whether a new repository is private; default: the owner's setting.
            token: of the hub; default: the one of `hf auth login`.
            message: of the commit.
            tag: name of this version, such as "v2"; default: none.

        Returns:
            The address of the commit.

        Warns:
            UserWarning: the autoencoder is a folder of this machine, which other readers do not have.

        Raises:
            InputError: huggingface_hub is not installed, the hub refuses or cannot be reached, or the booster was not
                loaded.
        """
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise InputError("push_to_hub needs huggingface_hub: pip install 'fmboost_jax[hub]'") from error
        if self.config is not None and os.path.exists(self.config.latents.path):
            warnings.warn(
                f"the bundle names its autoencoder by a path of this machine, {self.config.latents.path}; other "
                "readers pass theirs as first_stage=",
                stacklevel=2,
            )
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as parent:
            folder = pathlib.Path(parent) / "bundle"
            self.save_pretrained(folder, dtype=dtype)
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
                if tag is not None:
                    api.create_tag(repo_id, tag=tag, revision=commit.oid)
            # The hub's client raises exceptions of many types.
            except Exception as error:
                raise InputError(f"the upload to {repo_id} failed: {one_line(error)}") from error
        return str(commit.commit_url)

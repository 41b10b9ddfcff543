"""Training checkpoints as the reference's trainer writes them: through Lightning, with OmegaConf's hyper-parameters."""

import collections
import os
import pathlib
import subprocess
import sys
import typing
import warnings

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from safetensors.numpy import load_file

from fmboost_jax import convert
from fmboost_jax.errors import InputError
from fmboost_jax.interop import load_first_stage, load_lightning, state_dict, unet_config
from fmboost_jax.interop.omegaconf_values import plain_values
from fmboost_jax.interop.torch_file import read_torch_file
from fmboost_jax.interop.unet import ReferenceCheckpoint
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from tests.interop.test_torch_file import rewritten
from tests.random_models import random_model
from tests.torch_reference import randomised
from tests.torch_reference.unet import UNet as Twin

NETWORK = {
    "in_channels": 8,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "channel_mult": [1],
    "attention_resolutions": [],
    "dim_head": 16,
    "num_heads": 2,
}
# As in a configuration file: the network's arguments name a value of another section.
CONFIG = OmegaConf.create(
    {
        "width": 32,
        "model": {
            "params": {
                "start_from_noise": True,
                "noising_step": 400,
                "scale_factor": 0.18215,
                "fm_cfg": {
                    "target": "flow.FlowModel",
                    "params": {"net_cfg": {"params": {**NETWORK, "model_channels": "${width}", "dropout": 0.0}}},
                },
            }
        },
    }
)


class Trained(lightning.LightningModule):
    """Twins under the reference's names; Lightning keeps the constructor's arguments as hyper-parameters."""

    def __init__(self, fm_cfg, scale_factor, noising_step, start_from_noise):
        super().__init__()
        self.save_hyperparameters()
        config = unet_config(NETWORK)
        online, average = (torch.nn.ModuleDict({"net": randomised(Twin(config), seed)}) for seed in (1, 2))
        self.model = online.requires_grad_(True)
        self.ema_model = torch.nn.ModuleDict({"ema_model": average})
        self.autoencoder = state_dict(
            random_model(AutoencoderKL, AutoencoderKLConfig(channels=(32,), blocks=1)), "compvis"
        )

    def training_step(self, batch, number):
        return sum(parameter.square().sum() for parameter in self.model.parameters())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, update / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        tensors = {f"first_stage.{name}": torch.tensor(value) for name, value in self.autoencoder.items()}
        checkpoint["state_dict"].update(tensors)


def fit(folder: str) -> None:
    """One update by Lightning's trainer, which writes `folder`/one.ckpt."""
    callback = ModelCheckpoint(folder, filename="one", every_n_train_steps=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_steps=1, callbacks=[callback], **quiet)
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(Trained(**CONFIG.model.params), torch.utils.data.DataLoader([torch.zeros(1)]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What Lightning's trainer writes after one update, and the module.

    The trainer runs in another process. At its end, a worker that had run several hundred tests crashed.
    """
    folder = tmp_path_factory.mktemp("reference")
    command = f"from {__name__} import fit; fit({str(folder)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=pathlib.Path(__file__).parents[2], check=True)
    path, model = str(folder / "one.ckpt"), Trained(**CONFIG.model.params)
    weights = torch.load(path, weights_only=False)["state_dict"]
    model.load_state_dict(weights, strict=False)
    return path, model


def same(found, expected) -> bool:
    """The same names with the same bits."""
    return found.keys() == expected.keys() and all(np.array_equal(found[k], np.asarray(expected[k])) for k in found)


def test_networks_and_their_arguments(written):
    path, model = written
    content = read_torch_file(path)
    assert isinstance(model.hparams.fm_cfg, DictConfig)
    assert {"loops", "callbacks", "optimizer_states", "lr_schedulers"} <= content.keys()
    assert ReferenceCheckpoint.read(path).step == 1
    average = load_lightning(path)
    assert average.config == unet_config(NETWORK)
    assert same(state_dict(average), model.ema_model.ema_model.net.state_dict())
    assert same(state_dict(load_lightning(path, ema=False)), model.model.net.state_dict())


def test_first_stage(written):
    path, model = written
    assert same(state_dict(load_first_stage("kl", path).model), model.autoencoder)


def test_conversion_to_a_run_and_back(written, tmp_path):
    path, model = written
    run, back = str(tmp_path / "run"), str(tmp_path / "back.safetensors")
    convert.main(["from-reference", path, run, "--config", "configs/demo.py"])
    convert.main(["to-reference", run, back])
    assert same(load_file(back), model.ema_model.ema_model.net.state_dict())


def test_values_agree_with_omegaconf(tmp_path):
    config = OmegaConf.create(
        {
            "numbers": [1, 2.5, True, None, "text", b"bytes", [3, {"deep": "${text}"}]],
            "text": "${above.name}",
            "above": {"name": "x", "same": "${.name}", "higher": "${..numbers[1]}", "of": {"all": "${above.name}"}},
            "path": pathlib.Path("a/b"),
        }
    )
    torch.save({"hyper_parameters": config}, tmp_path / "x.ckpt")
    found = plain_values(read_torch_file(str(tmp_path / "x.ckpt")))["hyper_parameters"]
    path = found.pop("path")
    assert (path.qualified_name.split(".")[-1], path.arguments) == ("PosixPath", ("a", "b"))
    expected = OmegaConf.to_container(config, resolve=True)
    del expected["path"]
    assert found == expected


def test_containers_of_other_classes(tmp_path):
    content = {
        "attributes": AttributeDict(a=1, b=torch.ones(2)),
        "default": collections.defaultdict(list, {"a": [1]}),
        "missing": OmegaConf.create({"a": "???", "b": "${oc.env:HOME}"}),
        "class": DictConfig,
        "any": typing.Any,
    }
    torch.save(content, tmp_path / "x.ckpt")
    found = plain_values(read_torch_file(str(tmp_path / "x.ckpt")))
    assert found["attributes"].keys() == {"a", "b"}
    assert found["default"] == {"a": [1]}
    assert found["missing"] == {"a": None, "b": "${oc.env:HOME}"}


def test_nodes_in_many_places_are_converted_once():
    """A chain of 60 lists, each twice in the next, has 2^60 paths."""
    shared = [1]
    for _ in range(60):
        shared = [shared, shared]
    found = plain_values({"config": shared, "again": shared})
    assert found["config"] is found["again"]
    for _ in range(60):
        assert found["config"][0] is found["config"][1]
        found = {"config": found["config"][0]}
    assert found["config"] == [1]


class Hostile:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_among_the_hyper_parameters_is_refused(tmp_path):
    made = tmp_path / "made"
    hidden = OmegaConf.create({"x": [Hostile(str(made))]}, flags={"allow_objects": True})
    torch.save({"state_dict": {}, "hyper_parameters": {"fm_cfg": hidden}}, tmp_path / "x.ckpt")
    for read in (read_torch_file, load_lightning):
        with pytest.raises(InputError, match=r"x\.ckpt: the file would run posix\.mkdir"):
            read(str(tmp_path / "x.ckpt"))
    assert not made.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # A class of OmegaConf becomes a function that Python would call: here on `dict`.
        (b"ccollections\ndefaultdict\n", b"cbuiltins\nbreakpoint\n", r"would run builtins\.breakpoint"),
        (b"comegaconf.nodes\nAnyNode\n", b"comegaconf.nodes\nAnyNodes\n", r"would run omegaconf\.nodes\.AnyNodes"),
        (b"${width}", b"${wodth}", r"hyper-parameters cannot be read .*\$\{wodth\} names nothing"),
        (b"${width}", b"${model}", "a config that contains itself"),
        (b"${width}", b"${..xyz}", r"\$\{\.\.xyz\} names nothing"),
    ],
)
def test_hyper_parameters_that_are_damaged_are_refused(written, tmp_path, old, new, message):
    def change(name, data):
        if not name.endswith("data.pkl"):
            return data
        assert old in data
        return data.replace(old, new)

    rewritten(written[0], tmp_path / "x.ckpt", change)
    with pytest.raises(InputError, match=message):
        load_lightning(str(tmp_path / "x.ckpt"))


def test_network_arguments_of_another_type_are_refused(tmp_path):
    arguments = {"fm_cfg": {"params": {"net_cfg": {"params": OmegaConf.create([1, 2])}}}}
    torch.save({"state_dict": {}, "hyper_parameters": arguments}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=r"expected network arguments by name in hyper_parameters\..*, found list"):
        load_lightning(str(tmp_path / "x.ckpt"))

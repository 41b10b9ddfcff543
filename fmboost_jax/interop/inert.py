"""Stand-ins for the Python objects beside the tensors of a PyTorch file: they hold what was pickled and run nothing.

A pickle makes an object by calling its class, and then gives it a state. Only classes in `INERT` have a stand-in, which
records both. To read another harmless class, add its name there.
"""

from typing import Any


class InertObject:
    """An object of the class `qualified_name`, which was not constructed.

    Attributes:
        qualified_name: module and name of the class in the file.
        arguments: what the class would have been called with.
        state: what would have become its attributes; usually a dictionary.
    """

    qualified_name = ""
    arguments: tuple = ()
    state: Any = None

    def __new__(cls, *arguments: Any):
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.qualified_name}, not constructed>"


class InertDict(dict):
    """A dictionary of the class `qualified_name`: its items, without the class's arguments, state and methods."""

    qualified_name = ""

    def __init__(self, *_: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


# Harmless classes of other projects, and what stands for their objects.
INERT: dict[str, type] = {
    "collections.defaultdict": InertDict,
    "lightning.fabric.utilities.data.AttributeDict": InertDict,
    "lightning.pytorch.utilities.parsing.AttributeDict": InertDict,
    "lightning_fabric.utilities.data.AttributeDict": InertDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": InertDict,
    "omegaconf.base.ContainerMetadata": InertObject,
    "omegaconf.base.Metadata": InertObject,
    "omegaconf.dictconfig.DictConfig": InertObject,
    "omegaconf.listconfig.ListConfig": InertObject,
    "omegaconf.nodes.AnyNode": InertObject,
    "omegaconf.nodes.BooleanNode": InertObject,
    "omegaconf.nodes.BytesNode": InertObject,
    "omegaconf.nodes.FloatNode": InertObject,
    "omegaconf.nodes.IntegerNode": InertObject,
    "omegaconf.nodes.PathNode": InertObject,
    "omegaconf.nodes.StringNode": InertObject,
    # Python 3.13 names another module than the versions before and after it.
    **{
        f"{module}.{name}": InertObject
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    "__builtin__.bytearray": InertObject,
    "__builtin__.complex": InertObject,
    "__builtin__.frozenset": InertObject,
    "__builtin__.set": InertObject,
    "__builtin__.slice": InertObject,
    "__builtin__.xrange": InertObject,
    "argparse.Namespace": InertObject,
    "collections.Counter": InertObject,
    "datetime.date": InertObject,
    "datetime.datetime": InertObject,
    "datetime.timedelta": InertObject,
    "datetime.timezone": InertObject,
    "easydict.EasyDict": InertDict,
    "addict.addict.Dict": InertDict,
    "ml_collections.config_dict.config_dict.ConfigDict": InertObject,
    "numpy._core.multiarray._reconstruct": InertObject,
    "numpy._core.multiarray.scalar": InertObject,
    "numpy.core.multiarray._reconstruct": InertObject,
    "numpy.core.multiarray.scalar": InertObject,
    "numpy.dtype": InertObject,
    "numpy.ndarray": InertObject,
    "torch.device": InertObject,
    "types.SimpleNamespace": InertObject,
    "uuid.UUID": InertObject,
    "yacs.config.CfgNode": InertDict,
}


def inert_class(module: str, name: str) -> type | None:
    """Return the stand-in for a class, or None where the class is not in `INERT`."""
    qualified_name = f"{module}.{name}"
    stand_in = INERT.get(qualified_name)
    return stand_in and type(name, (stand_in,), {"qualified_name": qualified_name})

"""Hooks of mkdocs: the API reference is made of the package, and links that leave `docs/` become plain text."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = pathlib.Path(__file__).parents[1] / "fmboost_jax"
# On the web hoster's page of the repository these links lead to files; on the site there are none.
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every sub-package, with all its modules, and one for the modules beside them."""
    folders = sorted(folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())
    pages = {"fmboost_jax": _modules(PACKAGE)}
    pages |= {folder.name: _modules(folder) for folder in folders if _modules(folder)}
    for name, modules in pages.items():
        title = name if name == "fmboost_jax" else f"fmboost_jax.{name}"
        content = f"# {title}\n\n" + "\n\n".join(f"::: {title}.{module}" for module in modules)
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of the reference in the navigation."""
    names = ["fmboost_jax", *sorted(f.name for f in PACKAGE.iterdir() if (f / "__init__.py").is_file() and _modules(f))]
    config.nav[-1] = {"API reference": [f"api/{name}.md" for name in names]}
    return config


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace links to files outside `docs/` by their text."""
    return _OUTSIDE.sub(r"\1", markdown)


def _modules(folder: pathlib.Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))

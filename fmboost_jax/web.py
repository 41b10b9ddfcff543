"""Boost photographs in a browser: a page on this machine. Needs the extra `[web]`.

    python -m fmboost_jax.web
    python -m fmboost_jax.web --booster BUNDLE photo-x2 --port 7861
    python -m fmboost_jax.web --booster BUNDLE --base FOLDER_OR_ID
    python -m fmboost_jax.web --host 0.0.0.0 --password-file FILE

By default the page is available on this machine only. `--host` makes it available at another address, where
`--password-file` protects it by a password (user name: fmboost). Requests of several visitors wait in a queue. No
request leaves the machine, and uploads and results are removed after an hour.
"""

import argparse
import ipaddress
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from fmboost_jax.assets import DEFAULT_BOOSTER
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import BACKEND_HELP, BaseModel
from fmboost_jax.boosting.interactive import Boosted, Settings, boost_photograph, boost_prompt
from fmboost_jax.errors import InputError, one_line, run
from fmboost_jax.files import refuse_addresses
from fmboost_jax.flow.coupling import DIFFUSION_STEPS
from fmboost_jax.images.colour import FIXES, NO_FIX
from fmboost_jax.images.photos import UnusablePhoto, load_photo, photo_size
from fmboost_jax.images.png import write_png

USER = "fmboost"
KEEP_SECONDS = 3600
QUEUE = 32  # visitors that wait; more are refused


def build_page(boosters: dict[str, Booster], *, base: BaseModel | None = None, max_side: int = 1024) -> Any:
    """Build the page, a `gradio.Blocks`.

    Args:
        boosters: those that a visitor can choose from, by name; the first is the default.
        base: base model; with one, the page also takes prompts.
        max_side: longest side of a photograph, in pixels.

    Raises:
        InputError: gradio is not installed.
    """
    gr = import_gradio()
    results = pathlib.Path(tempfile.mkdtemp(prefix="fmboost-web-"))
    first = next(iter(boosters))

    def settings_of(name, factor, steps, noise, seed, fix) -> Settings:
        passes = 2 if factor > boosters[name].factor else 1
        trained = noise == boosters[name].coupling.noise_step
        return Settings(passes, int(steps), int(seed), None if trained else int(noise), None if fix == NO_FIX else fix)

    def show(path):
        if path is None:
            return (
                gr.update(value=None, visible=True),
                gr.update(visible=False),
                gr.update(interactive=False),
                "",
                _EMPTY,
            )
        try:
            size = photo_size(path)
            if size is not None and max(size) > max_side:
                raise InputError(f"{size[0]}×{size[1]} pixels: the longest side may have {max_side}")
            photo = load_photo(path)
        except (InputError, UnusablePhoto) as error:
            raise gr.Error(
                f"{os.path.basename(path)}: {one_line(error)}", title="No photograph", print_exception=False
            ) from None
        height, width = photo.pixels.shape[:2]
        return (
            gr.update(value=photo.rgb, visible=True),
            gr.update(visible=False),
            gr.update(interactive=False),
            "",
            f"{width} × {height} pixels",
        )

    def finish(make: Callable[[], Boosted], stem: str):
        started = time.monotonic()
        try:
            result = make()
        except InputError as error:
            raise gr.Error(one_line(error), title="Not boosted", print_exception=False) from None
        folder = _new_folder(results)
        height, width = result.after.shape[:2]
        after, before = folder / f"{stem}_{width}x{height}.png", folder / "before.png"
        write_png(after, result.after, result.settings)
        write_png(before, result.before)
        seconds = time.monotonic() - started
        facts = result.settings
        text = (
            f"{width} × {height} pixels in {seconds:.1f} s · {facts['checkpoint']}, steps {facts['steps']}, "
            f"noise {facts['noise_step']}, seed {facts['seed']}"
        )
        return (
            gr.update(visible=False),
            gr.update(value=(str(before), str(after)), visible=True),
            gr.update(value=str(after), interactive=True),
            text,
        )

    def boost(path, name, factor, steps, noise, seed, fix, progress=gr.Progress()):  # noqa: B008 (gradio injects it)
        if path is None:
            raise gr.Error("Drop a photograph first.", title="Nothing to boost", print_exception=False)
        settings = settings_of(name, factor, steps, noise, seed, fix)
        stem = pathlib.PurePath(path).stem
        return finish(
            lambda: boost_photograph(
                boosters[name],
                name,
                path,
                settings,
                max_side=max_side,
                report=lambda done, text: progress(done, desc=text),
            ),
            stem,
        )

    def boost_text(prompt, name, factor, steps, noise, seed, fix, progress=gr.Progress()):  # noqa: B008
        settings = settings_of(name, factor, steps, noise, seed, fix)
        model = base
        assert model is not None, "its button is visible only with a base model"
        return finish(
            lambda: boost_prompt(
                boosters[name], name, model, prompt, settings, report=lambda done, text: progress(done, desc=text)
            ),
            "prompt",
        )

    def choose_booster(name):
        factor = boosters[name].factor
        return gr.update(choices=_factors(factor), value=factor), boosters[name].coupling.noise_step

    with gr.Blocks(
        title="fmboost", analytics_enabled=False, fill_width=True, delete_cache=(KEEP_SECONDS // 4, KEEP_SECONDS)
    ) as page:
        gr.HTML(_HEADER, padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320, elem_id="controls"):
                photograph = gr.File(
                    label="Photograph", file_types=["image"], type="filepath", height=150, elem_id="photograph"
                )
                facts = gr.Markdown(_EMPTY, elem_id="facts")
                prompt = gr.Textbox(label="Or a prompt", lines=2, visible=base is not None, elem_id="prompt")
                name = gr.Dropdown(list(boosters), value=first, label="Booster", elem_id="booster")
                factor = gr.Radio(
                    _factors(boosters[first].factor),
                    value=boosters[first].factor,
                    label="Enlarge",
                    elem_id="factor",
                )
                steps = gr.Slider(
                    1,
                    20,
                    value=boosters[first].steps,
                    step=1,
                    label="Steps",
                    info="More steps take longer.",
                    elem_id="steps",
                )
                with gr.Accordion("Noise, seed, colours", open=False):
                    noise = gr.Slider(
                        0,
                        DIFFUSION_STEPS - 1,
                        value=boosters[first].coupling.noise_step,
                        step=1,
                        label="Noise",
                        info="More noise adds detail and reduces fidelity.",
                        elem_id="noise",
                    )
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                    fix = gr.Radio(
                        [NO_FIX, *FIXES],
                        value="consistency",
                        label="Colour fix",
                        info="consistency: the result, shrunk, equals the photograph.",
                        elem_id="fix",
                    )
                with gr.Row():
                    button = gr.Button("Boost", variant="primary", size="lg", elem_id="boost")
                    prompt_button = gr.Button("Boost the prompt", size="lg", visible=base is not None)
            with gr.Column(scale=5, min_width=480, elem_id="stage"):
                preview = gr.Image(
                    label="Before",
                    interactive=False,
                    format="png",
                    buttons=[],
                    height=560,
                    elem_id="preview",
                )
                slider = gr.ImageSlider(
                    label="Before | after",
                    format="png",
                    type="filepath",
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=560,
                    height=560,
                    visible=False,
                    elem_id="slider",
                )
                with gr.Row(equal_height=True):
                    status = gr.Markdown("", elem_id="status")
                    download = gr.DownloadButton(
                        "Download PNG", interactive=False, scale=0, min_width=180, elem_id="download"
                    )
        outputs = [preview, slider, download, status]
        controls = [name, factor, steps, noise, seed, fix]
        photograph.change(show, photograph, [*outputs, facts], show_progress="hidden", concurrency_limit=None)
        name.change(choose_booster, name, [factor, noise], show_progress="hidden", concurrency_limit=None)
        common = {"show_progress_on": [preview, slider], "concurrency_id": "boost", "concurrency_limit": 1}
        button.click(boost, [photograph, *controls], outputs, **common)
        prompt_button.click(boost_text, [prompt, *controls], outputs, **common)
    return page.queue(max_size=QUEUE)


def serve(
    page: Any,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    password: str | None = None,
    max_upload: float = 20,
    block: bool = True,
) -> str:
    """Serve a page.

    Args:
        page: of `build_page`.
        host: address to listen at.
        port: default: the first free one from 7860.
        password: that visitors must give, with the user name "fmboost".
        max_upload: largest file, in MB.
        block: return only when the server ends.

    Returns:
        The page's address.

    Raises:
        InputError: the port is not free, or the address is not this machine's.
    """
    gr = import_gradio()
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        # Fonts of the system: gradio's own default is fetched from the network.
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            auth=(USER, password) if password else None,
            max_file_size=int(max_upload * 1e6),
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            quiet=True,
            theme=theme,
            css=_CSS,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({one_line(error)})") from error
    if block:
        print(f"fmboost is at {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return address


def import_gradio() -> Any:
    """Return gradio, with its analytics off.

    Raises:
        InputError: it is not installed.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio
    except ImportError as error:
        raise InputError("the page needs gradio: pip install 'fmboost_jax[web]'") from error
    return gradio


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = _parser().parse_args(argv)
    refuse_addresses(vars(arguments))
    if arguments.max_side < 16 or arguments.max_upload <= 0:
        raise InputError("--max-side must be 16 or more, --max-upload more than 0")
    password = _password(arguments.password_file)
    if password is None and not _is_local(arguments.host):
        print(
            f"warning: everyone who can reach {arguments.host} can use this page; --password-file FILE asks for a "
            "password",
            file=sys.stderr,
        )
    base = None
    boosters = {pathlib.PurePath(path).name: Booster.load(path) for path in arguments.booster}
    if arguments.base:
        from fmboost_jax.generation.base import load_base

        first = next(iter(boosters.values()))
        for name, booster in list(boosters.items())[1:]:
            first.first_stage.spec.check(booster.first_stage.spec, f"booster {name}")
        base = load_base(arguments.base, [first], arguments.base_backend)
    page = build_page(boosters, base=base, max_side=arguments.max_side)
    serve(page, host=arguments.host, port=arguments.port, password=password, max_upload=arguments.max_upload)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fmboost_jax.web", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--booster",
        nargs="+",
        default=[DEFAULT_BOOSTER, "photo-x4", "photo-x4-looks"],
        metavar="DIR",
        help="bundles, runs or names of packaged weights to choose from (default: photo-x2 photo-x4 photo-x4-looks)",
    )
    add("--base", metavar="FOLDER_OR_ID", help="a diffusers pipeline, to boost its latents of a prompt")
    add("--base-backend", choices=("auto", "jax", "torch"), default="auto", help=BACKEND_HELP)
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, help="port to listen at (default: the first free one from 7860)")
    add("--password-file", metavar="FILE", help="file with the password that visitors must give; user name: fmboost")
    add("--max-side", type=int, default=1024, metavar="PIXELS", help="longest side of a photograph (default: 1024)")
    add("--max-upload", type=float, default=20, metavar="MB", help="largest file of a photograph (default: 20)")
    return parser


def _password(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        password = pathlib.Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--password-file {path} cannot be read: {one_line(error)}") from error
    if not password:
        raise InputError(f"--password-file {path} is empty; expected a password on its first line")
    return password


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _factors(factor: int) -> list[tuple[str, int]]:
    return [(f"×{factor}", factor), (f"×{factor**2}, in two passes", factor**2)]


def _new_folder(parent: pathlib.Path) -> pathlib.Path:
    """Make a folder for a result; folders older than `KEEP_SECONDS` are removed."""
    for old in parent.iterdir():
        if time.time() - old.stat().st_mtime > KEEP_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(dir=parent))


_EMPTY = "JPEG, PNG, WebP, TIFF and others"
_HEADER = """
<header id="title">
  <h1>fmboost</h1>
  <p>Flow matching from a small latent to a large one. Your photographs stay on this machine.</p>
</header>
"""
_CSS = """
.gradio-container, .gradio-container main { width: 100%; max-width: 1440px !important; margin: 0 auto; }
#title { display: flex; align-items: baseline; gap: 1rem; padding: .5rem 0; }
#title h1 { font-size: 1.6rem; font-weight: 650; letter-spacing: -.02em; margin: 0; }
#title p { color: var(--body-text-color-subdued); margin: 0; }
#facts *, #status * { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
#facts { margin-top: -.5rem; }
#preview .empty::after { content: "Drop a photograph on the left."; padding: 1rem; }
footer { display: none !important; }
"""


if __name__ == "__main__":
    run(main)

"""Launching the studio: its models, its address, its limits. Nothing is fetched from the network."""

import contextlib
import io
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradio.themes import Default  # pyright: ignore[reportMissingImports]
from PIL import Image

from jdiff.cli.errors import demand
from jdiff.cli.process import note
from jdiff.model import shipped
from jdiff.studio import pages, runs, tasks
from jdiff.studio.flow import WAITING, Studio
from jdiff.studio.results import Models, draw

HOST, PORT = "127.0.0.1", 7860
FOLDER = Path(__file__).parent
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace")


def studio(name: str, models: Models | None = None) -> Studio:
    """Returns a studio whose model is loaded.

    Args:
        name: of the model, as `jdiff.load` takes it.
        models: those that are loaded already, of which `name` is the first.

    Raises:
        BadInput: there is no such model, or it is of stage 2.
    """
    models = Models(name) if models is None else models
    model = models.get()
    demand(not model.config.upscales, f"--model must be of stage 1, got {name}, which is of stage 2")
    letters = name if model.config.channels == 1 else "letters" if (shipped("letters") / "unet").is_dir() else None
    return Studio(models, letters)


def check_port(port: int) -> None:
    """Checks that a port is free.

    Raises:
        BadInput: it is not, or it is no port.
    """
    demand(1 <= port <= 65535, f"--port must be between 1 and 65535, got {port}")
    with socket.socket() as probe:
        if os.name == "posix":  # a port whose last connection has just been closed is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = "is in use" if not isinstance(error, PermissionError) else "needs the rights of an administrator"
            other = port + 1 if 1024 <= port < 65535 else PORT + 1
            demand(False, f"--port {port} {why}; give another, such as --port {other}, or end what uses it")


def warm(here: Studio) -> threading.Thread:
    """Draws the first page's pictures once in the background, so that the first click does not wait for a compiler."""
    task = tasks.generate(tasks.Common(here.name, steps=2), [*here.examples[:1]])

    def call() -> None:
        for _ in runs.run(lambda watch: draw(here.models, task, watch), threading.Event()):
            pass

    thread = threading.Thread(target=call, name="jdiff studio warm-up", daemon=True)
    thread.start()
    return thread


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the server's log is more than a browser that went away in the middle of an upload."""
    return not (record.exc_info and type(record.exc_info[1]).__name__ == "ClientDisconnect")


def launch(here: Studio, *, port: int = PORT, share: bool = False, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Serves the studio in threads of its own.

    Args:
        here: the studio.
        port: on 127.0.0.1.
        share: whether Gradio also gives it a public address.
        folder: for uploads; the caller removes it.

    Returns:
        The address, and a function that ends the serving.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # Pillow refuses pictures of more than twice this, before Gradio decodes them
    Image.MAX_IMAGE_PIXELS = tasks.LARGEST * 10**6
    blocks = pages.build(here).queue(default_concurrency_limit=4, max_size=WAITING)
    theme = Default(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO)
    with contextlib.redirect_stdout(io.StringIO()) as told:  # why Gradio could not make a public address
        _, local, public = blocks.launch(
            server_name=HOST, server_port=port, share=share, prevent_thread_lock=True, quiet=True, show_error=True,
            max_file_size=tasks.LARGEST_FILE, footer_links=[], run_history=False, enable_monitoring=False,
            ssr_mode=False, mcp_server=False, theme=theme, css_paths=[FOLDER / "studio.css"],
            head=f"<script>{(FOLDER / 'studio.js').read_text()}</script>",
        )  # fmt: skip
    if share and not public:
        why = " ".join(told.getvalue().split())
        note(f"--share: there is no public address, so only this machine can open the page; {why}")
    return public or local, blocks.close

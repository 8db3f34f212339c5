"""`jdiff studio`: the page in the browser. Gradio and JAX are imported late."""

import dataclasses
import os
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from jdiff.cli.errors import demand, is_unicode
from jdiff.cli.flags import Whole
from jdiff.cli.make import start_jax
from jdiff.cli.process import tell
from jdiff.parts import new_folder


@dataclasses.dataclass
class Studio:
    """Opens a page in the browser that draws, edits, inpaints and plays illusions."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini"
    """The model: mini, letters, the folder of a converted one, or OWNER/NAME of one on the hub."""
    port: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 7860
    """Port on 127.0.0.1, which only this machine reaches."""
    share: bool = False
    """Also give the page a public address, by Gradio's servers. Whoever has it can draw on this machine."""

    def __call__(self) -> str:
        """Serves until a signal ends the process."""
        demand(self.model != "" and is_unicode(self.model), f"--model must be a name or a folder, got {self.model!a}")
        installed = find_spec("gradio") is not None
        demand(installed, "jdiff studio needs Gradio, which is not installed; pip install 'gradio>=6' 'pillow<13'")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from jdiff.studio import app

        app.check_port(self.port)
        start_jax(cores=True)
        here = app.studio(self.model)
        with new_folder(Path(tempfile.gettempdir()) / f"jdiff-studio-{os.getpid()}") as folder:
            folder.chmod(0o700)
            address, _ = app.launch(here, port=self.port, share=self.share, folder=folder)
            tell(f"jdiff studio is at {address} - Ctrl-C ends it")
            app.warm(here)
            threading.Event().wait()
        return ""

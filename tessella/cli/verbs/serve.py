"""``tessella serve``."""

from __future__ import annotations

import importlib.util

from tessella.cli.run_twin import set_threads
from tessella.cli.terminal import complain, say
from tessella.cli.verb_options import Serve
from tessella.errors import ConfigError
from tessella.pipeline import pick_device

LIBRARIES = ("fastapi", "uvicorn")
"""What the extra ``web`` brings."""


def run(command: Serve) -> int:
    """Serve a page until Ctrl-C."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'the page needs {" and ".join(missing)}: pip install "tessella[web]", or'
            f" pip install {' '.join(LIBRARIES)}"
        )
    # Imported here, because it needs the libraries that were just looked for.
    from tessella.web.application import Application
    from tessella.web.doorkeeper import is_local
    from tessella.web.served_models import ServedModels
    from tessella.web.server import PageServer, listen

    set_threads(command.threads)
    # The address first: models take seconds to load.
    with listen(command.host, command.port) as listening:
        models = ServedModels(command.runs, pick_device(command.device))
        names = ", ".join(served.name for served in models)
        if not is_local(command.host):
            complain(
                f"warning: {command.host} can be reached from other machines, and whoever reaches"
                " it can use the models; there is no password"
            )
        app = Application(models, command.queue)

        def tell(address: str) -> None:
            say(f"{names}: {address} (Ctrl-C ends it)")

        PageServer(app, command.host, listening, tell).answer()
    say("stopped")
    return 0

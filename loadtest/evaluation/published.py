"""Plots of the asked versions from the store, where it is here: losses, and what was gained and lost."""

from base64 import b64encode
from collections.abc import Iterable

from adapters.errors import AdapterError
from adapters.store.store import AdapterStore
from adapters.store.version_files import PLOT_FILE
from config.home import Home
from loadtest.evaluation.report import ModelReport


def plots_of(models: Iterable[ModelReport], home: Home) -> dict[str, str]:
    """Addresses of images by `served_by`; an image runs no script that an SVG file may have."""
    store, found = AdapterStore(home.adapters), {}
    for model in models:
        try:
            folder = store.folder(store.resolve(model.served_by))
        except AdapterError:  # the base, or a version of another store
            continue
        if (folder / PLOT_FILE).is_file():
            found[model.served_by] = (
                f"data:image/svg+xml;base64,{b64encode((folder / PLOT_FILE).read_bytes()).decode()}"
            )
    return found

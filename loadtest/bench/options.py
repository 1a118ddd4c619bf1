"""Options of every benchmark."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from config.home import Home
from config.packaged import default_file


@dataclass(frozen=True)
class BenchOptions:
    """Options. Without a URL, a benchmark starts and stops the servers that it needs."""

    home: Home
    serve_file: Path = field(default_factory=lambda: default_file("serve.yaml"))
    url: str | None = None
    models: tuple[str, ...] = ()
    adapter: str = "medical"
    rounds: int = 3
    pause_s: float = 1.0
    is_stock: bool = False
    minutes: float = 20.0
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    say: Callable[[str], None] = lambda line: None

    @property
    def rest_s(self) -> float:
        """Between measurements of two servers: an idle worker of vLLM spins for a second after its last request."""
        return 2 * self.pause_s

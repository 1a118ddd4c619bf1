"""Where Lorikeet keeps its state: one root folder with a fixed layout."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The state folder (`var/` by default, `LORIKEET_HOME` on the command line)."""

    root: Path

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """Checkpoints and logs of training runs, one folder a domain."""
        return self.root / "runs"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def staged(self) -> Path:
        """Versions in the engine's own layout, for later loads; may be deleted."""
        return self.root / "staged"

    @property
    def int8_bases(self) -> Path:
        """Bases rounded to int8 for serving on a CPU; may be deleted."""
        return self.root / "int8-bases"

    @property
    def keys(self) -> Path:
        """API keys of the server, as hashes."""
        return self.root / "keys.json"

    @property
    def loadtests(self) -> Path:
        """Results of load tests, one folder a run."""
        return self.root / "loadtests"

    @property
    def quality(self) -> Path:
        """Samples of answers, grades, labels, probe scores and looks at drift."""
        return self.root / "quality.sqlite3"

    @property
    def quality_key(self) -> Path:
        """What tenants' names are hashed with in samples."""
        return self.root / "quality.key"

    @property
    def demo(self) -> Path:
        return self.root / "demo"

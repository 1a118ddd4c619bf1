"""Layout of the state folder."""

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
        """Checkpoints and logs of training runs, one folder per domain."""
        return self.root / "runs"

    @property
    def tracking(self) -> Path:
        """What the trackers of `recipe.report_to` record; it outlives the runs."""
        return self.root / "tracking"

    @property
    def sweeps(self) -> Path:
        """Trials of `lorikeet sweep`, one folder per domain."""
        return self.root / "sweeps"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def unserved(self) -> Path:
        """Trained with `--allow-unserved`: adapters that no server can load, one folder per domain."""
        return self.root / "unserved"

    @property
    def staged(self) -> Path:
        """Cache of versions in the engine's layout; may be deleted."""
        return self.root / "staged"

    @property
    def int8_bases(self) -> Path:
        """Cache of bases quantized to int8 for serving on a CPU; may be deleted."""
        return self.root / "int8-bases"

    @property
    def keys(self) -> Path:
        """API keys of the server, as hashes."""
        return self.root / "keys.json"

    @property
    def loadtests(self) -> Path:
        """Results of load tests, one folder per run."""
        return self.root / "loadtests"

    @property
    def base_answers(self) -> Path:
        """What bases answered to the questions of earlier trainings."""
        return self.root / "base-answers"

    @property
    def evaluations(self) -> Path:
        """Answers of live models to held-out questions, and reports on them, one folder per domain."""
        return self.root / "evaluations"

    @property
    def decisions(self) -> Path:
        """Trainings of `lorikeet eval decide` on parts of the rows, one folder per domain; may be deleted."""
        return self.root / "decide"

    @property
    def quality(self) -> Path:
        """Answer samples, grades, labels, held-out scores and drift checks."""
        return self.root / "quality.sqlite3"

    @property
    def quality_key(self) -> Path:
        """Key for hashing tenant names in samples."""
        return self.root / "quality.key"

    @property
    def synthetic(self) -> Path:
        """Rows written by `lorikeet data expand`, one folder per domain."""
        return self.root / "synthetic"

    @property
    def feedback(self) -> Path:
        """Rows of `lorikeet data from-samples` as files to train on, one folder per domain."""
        return self.root / "feedback"

    @property
    def data_reports(self) -> Path:
        """HTML pages of `lorikeet data report`, one per domain."""
        return self.root / "reports" / "data"

    @property
    def cluster_id(self) -> Path:
        """A random word, by which the nodes of a cluster know that they see the same folder."""
        return self.root / "cluster-id"

    @property
    def jobs(self) -> Path:
        """Files, fine-tuning jobs and batches of clients."""
        return self.root / "jobs"

    @property
    def demo(self) -> Path:
        return self.root / "demo"

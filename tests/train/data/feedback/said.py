"""Sampled answers of `medical`, and what was said of them, for tests of the data sets that come of it."""

from dataclasses import dataclass, replace

from config.home import Home
from quality.samples.records import Feedback, Grade, Label, Turn
from quality.samples.store import QualityStore
from tests.datasets_on_disk import write_dataset
from tests.samples import NOON_S, SAMPLE

SYSTEM = Turn("system", "Chapter, as JSON.")
"""That of `write_dataset`."""


@dataclass
class Said:
    """Writes into a store, an answer a second."""

    home: Home
    store: QualityStore
    now_s: float = NOON_S
    system: Turn = SYSTEM

    def answer(self, question: str, answer: str, version: int = 3, finish_reason: str = "stop") -> int:
        self.now_s += 1.0
        sample = replace(
            SAMPLE,
            at_s=self.now_s,
            version=version,
            answer=answer,
            messages=(self.system, Turn("user", question)),
            signals=replace(SAMPLE.signals, finish_reason=finish_reason),
        )
        return self.store.add_sample(sample)

    def feedback(
        self,
        sample_id: int,
        who: str,
        score: float | None = None,
        correction: str | None = None,
        over_id: int | None = None,
    ) -> None:
        given = Feedback(sample_id, who, self.now_s, score, correction, over_id)
        assert self.store.add_feedback(given, most_of_sample=1000)

    def label(self, sample_id: int, score: float, who: str = "ada") -> None:
        self.store.add_label(Label(sample_id, who, self.now_s, score))

    def grade(self, sample_id: int, score: float) -> None:
        self.store.add_grade(Grade(sample_id, "judge", self.now_s, score))


def begin(home: Home, num_test: int = 4) -> Said:
    write_dataset(home.datasets / "medical", num_test)
    return Said(home, QualityStore(home.quality))

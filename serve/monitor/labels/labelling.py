"""Labelling in a terminal: one answer at a time, each label kept as soon as it is given."""

import time
from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule

from config.terminal import printable
from quality.labels import label_score
from quality.samples.records import Label, Sample
from quality.samples.store import QualityStore

HELP = "1 to 5, (r)ight, (w)rong, (s)kip, (u)ndo, (q)uit; text after a label is a note"

_MAX_COLUMNS = 120  # without a terminal the console is a million columns wide
_LOOKED_AT = 2000  # of the samples without a label, the newest, to find graded ones among them
_WORDS = {"r": "right", "w": "wrong"}


class LabellingProgress(NamedTuple):
    num_labelled: int
    num_left: int


class Labelling:
    """A session of one person. Ctrl-C at any time loses nothing.

    Args:
        ask: Reads a line; raises EOFError at the end of the input.
    """

    def __init__(
        self,
        store: QualityStore,
        samples: list[Sample],
        who: str,
        console: Console,
        ask: Callable[[str], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._samples = samples
        self._who = who
        self._console = console
        self._ask = ask
        self._clock = clock
        self._place = 0
        self._labelled: list[int] = []

    @property
    def progress(self) -> LabellingProgress:
        return LabellingProgress(len(self._labelled), len(self._samples) - self._place)

    def run(self) -> None:
        """Until all are labelled or skipped, or the person quits."""
        while self._place < len(self._samples):
            sample = self._samples[self._place]
            self._show(sample)
            if not self._take(sample):
                return

    def _take(self, sample: Sample) -> bool:
        """Read lines until one says what to do with the sample; False to quit."""
        while True:
            try:
                word, _, note = self._ask(f"{HELP}: ").strip().partition(" ")
            except EOFError:
                return False
            word = word.lower()
            if word in ("q", "quit"):
                return False
            if word in ("u", "undo"):
                if self._undo():
                    return True
                self._console.print("Nothing to undo in this session.")
                continue
            score = label_score(_WORDS.get(word, word))
            if score is not None:
                self._keep(Label(sample.id, self._who, self._clock(), score, _whole_characters(note.strip())))
            elif word not in ("s", "skip"):
                self._console.print(f"{word!r} must be one of: {HELP}")
                continue
            self._place += 1
            return True

    def _keep(self, label: Label) -> None:
        try:
            self._store.add_label(label)
        except KeyError:
            self._console.print("This sample has meanwhile been deleted by retention; showing the next one.")
        else:
            self._labelled.append(self._place)

    def _undo(self) -> bool:
        """Take back the last label, and show its sample again."""
        if not self._labelled:
            return False
        self._place = self._labelled.pop()
        self._store.remove_label(self._samples[self._place].id, self._who)
        return True

    def _show(self, sample: Sample) -> None:
        name = f"{sample.adapter}@{sample.version}" if sample.version else sample.adapter
        place = f"{self._place + 1} of {len(self._samples)}, {len(self._labelled)} labelled"
        prompt = Panel(printable(sample.prompt or ""), title="prompt", title_align="left", border_style="dim")
        answer = Panel(printable(sample.answer or ""), title="answer", title_align="left", border_style="green")
        heading = Rule(f"{place} · {name} · sample {sample.id}", align="left")
        self._console.print(Group(heading, prompt, answer), width=min(self._console.width, _MAX_COLUMNS))


def _whole_characters(text: str) -> str:
    """A terminal may give bytes that are no character; they cannot be stored."""
    return text.encode(errors="replace").decode()


def to_label(store: QualityStore, adapter: str | None, most: int) -> list[Sample]:
    """Samples with text that nobody has labelled, newest first, and those that a judge has graded before the others:
    only labels of graded answers tell how good the judge is."""
    graded = {grade.sample_id for grade in store.grades(adapter)}
    samples = store.unlabelled(adapter, max(most, _LOOKED_AT))
    return sorted(samples, key=lambda sample: (sample.id not in graded, -sample.at_s))[:most]

"""What clients' users say of answers, stored beside the sample that it is about."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from config.monitor import Privacy
from quality.samples.privacy import id_hash, kept_text, user_hash
from quality.samples.records import Feedback, Sample
from quality.samples.store import QualityStore
from serve.errors import ConflictError, InvalidRequestError, UnknownAnswerError

logger = logging.getLogger(__name__)

MOST_OF_SAMPLE = 100
"""Users whose feedback on one answer is kept."""


@dataclass(frozen=True)
class GivenFeedback:
    """Feedback as it was sent; at least one of the last three is set.

    Attributes:
        answer_id: Of the request or of its answer, as `over` is.
        user: Whom the client names; None: the tenant itself.
        over: The answer to the same question that the user liked less.
    """

    tenant: str
    answer_id: str
    user: str | None = None
    score: float | None = None
    correction: str | None = None
    over: str | None = None


@dataclass(frozen=True)
class TakenFeedback:
    """What was stored, and of which version's answer; `version` is 0 for the base."""

    feedback: Feedback
    adapter: str
    version: int

    @property
    def kind(self) -> Literal["correction", "preference", "score"]:
        """What it says most of all."""
        if self.feedback.correction is not None:
            return "correction"
        return "preference" if self.feedback.over_id is not None else "score"


Find = Callable[[str], Sample | None]
"""The sample with a hash of the id of its request or answer."""


class FeedbackWriter:
    """Stores feedback, without the text and the names that the privacy mode forbids.

    Args:
        key: What names and ids are hashed with.
    """

    def __init__(self, store: QualityStore, privacy: Privacy, key: bytes, clock: Callable[[], float]) -> None:
        self._store = store
        self._privacy = privacy
        self._key = key
        self._clock = clock

    def write(self, given: GivenFeedback, find: Find) -> TakenFeedback:
        """Store feedback; a later one of the same user replaces it.

        Raises:
            UnknownAnswerError: The tenant has no such answer among the samples.
            InvalidRequestError: The two answers of a preference are not to the same question.
            ConflictError: So many others have said something of this answer.
            QualityStoreError: The store fails.
        """
        sample = self._sample(given.tenant, given.answer_id, find)
        over = None if given.over is None else self._sample(given.tenant, given.over, find)
        if over is not None:
            _check_pair(sample, over)
        feedback = Feedback(
            sample_id=sample.id,
            who=user_hash(self._key, f"{given.tenant}\0{given.user or ''}"),
            at_s=self._clock(),
            score=given.score,
            correction=None if given.correction is None else kept_text(given.correction, self._privacy),
            over_id=None if over is None else over.id,
        )
        try:
            is_stored = self._store.add_feedback(feedback, most_of_sample=MOST_OF_SAMPLE)
        except KeyError:  # deleted by retention since
            raise UnknownAnswerError(given.answer_id) from None
        if not is_stored:
            raise ConflictError(f"{MOST_OF_SAMPLE} users have given feedback on this answer; no more is stored.")
        logger.info(
            "Feedback on sample %d of %s@%d by user %s", sample.id, sample.adapter, sample.version, feedback.who
        )
        return TakenFeedback(feedback, sample.adapter, sample.version)

    def _sample(self, tenant: str, answer_id: str, find: Find) -> Sample:
        sample = find(id_hash(self._key, tenant, answer_id))
        if sample is None:
            raise UnknownAnswerError(answer_id)
        return sample


def _check_pair(sample: Sample, over: Sample) -> None:
    if sample.id == over.id:
        raise InvalidRequestError("`preference.over` must name another answer; it names the same one.", "preference")
    if (sample.adapter, sample.messages) != (over.adapter, over.messages) or not sample.messages:
        raise InvalidRequestError(
            "`preference.over` must name an answer to the same conversation, by the same adapter; it names another "
            "question's. Ask the same messages twice to compare two answers.",
            "preference",
        )

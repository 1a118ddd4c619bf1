"""What a judge says of a sample, as a result that others are told of."""

from adapters.reference import Target
from quality.samples.privacy import redact
from quality.samples.records import Grade, Sample
from serve.records import EvaluationResult


def result_of(name: str, sample: Sample, grade: Grade) -> EvaluationResult:
    """The reason may quote the answer, so it is redacted in every privacy mode."""
    served_by = str(Target(sample.adapter, sample.version)) if sample.version else sample.adapter
    reason = redact(grade.reason) or None
    return EvaluationResult(name, served_by, grade.score, None, reason, sample.request_id)

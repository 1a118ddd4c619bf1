"""Build the data set of a job before its training; if cleaning would leave too little, warn instead of failing."""

from collections.abc import Mapping
from typing import Any

from config.home import Home
from train.data.build import build_dataset
from train.data.steps import CONTAMINATION
from train.errors import NothingLeftError
from train.jobs.domain import domain_of_values

_MAX_DROPPED = 0.5


def usable_values(job_id: str, values: Mapping[str, Any], home: Home) -> tuple[dict[str, Any], str]:
    """The values, and a warning or an empty string.

    Rows that are near duplicates of each other would mostly be dropped as similar to held-out ones. They are kept
    then, unless the client's recipe sets `data.cleaning.contamination`.

    Raises:
        DataError: No data set can be built from the rows.
    """
    if "contamination" in values["data"].get("cleaning", {}):
        build_dataset(domain_of_values(job_id, values), home)
        return dict(values), ""
    try:
        dataset = build_dataset(domain_of_values(job_id, values), home)
        step = next(step for step in dataset.steps if step.name == CONTAMINATION)
        if step.num_dropped <= _MAX_DROPPED * step.num_before:
            return dict(values), ""
        dropped = f"{step.num_dropped} of {step.num_before}"
    except NothingLeftError:
        dropped = "All"
    cleaning = values["data"].get("cleaning", {}) | {"contamination": "keep"}
    kept = dict(values) | {"data": values["data"] | {"cleaning": cleaning}}
    build_dataset(domain_of_values(job_id, kept), home)
    warning = (
        f"{dropped} training rows are nearly copies of held-out rows. They are trained on all the same, so that the "
        "evaluation says less of new questions than it seems to. Give a validation_file of other rows."
    )
    return kept, warning

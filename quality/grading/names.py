"""Metrics of `text_similarity` graders, by OpenAI's names; `meteor`, which needs WordNet, is left out."""

from typing import Literal

SimilarityMetric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]

"""Near-duplicate detection with MinHash: texts that differ in a word, a line break or a name."""

from datasketch import MinHash, MinHashLSH

_NUM_PERM = 128
_SHINGLE_CHARS = 5
# The index misses some pairs at its own threshold, so it looks lower and the exact similarity decides.
_INDEX_SLACK = 0.75


class NearDuplicates:
    """Index of texts that finds near-duplicates of another text."""

    def __init__(self, jaccard: float) -> None:
        self._jaccard = jaccard
        self._index = MinHashLSH(threshold=max(jaccard * _INDEX_SLACK, 0.05), num_perm=_NUM_PERM)
        self._shingles: list[frozenset[str]] = []

    def add(self, text: str) -> None:
        grams = shingles(text)
        self._index.insert(len(self._shingles), _minhash(grams))
        self._shingles.append(grams)

    def has_similar(self, text: str) -> bool:
        """Whether the Jaccard similarity of 5-character shingles reaches the threshold for any indexed text."""
        grams = shingles(text)
        return any(
            similarity(grams, self._shingles[key]) >= self._jaccard for key in self._index.query(_minhash(grams))
        )


def shingles(text: str) -> frozenset[str]:
    """All substrings of 5 characters; a shorter text is its own shingle."""
    return frozenset(text[start : start + _SHINGLE_CHARS] for start in range(max(len(text) - _SHINGLE_CHARS + 1, 1)))


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard similarity: shared shingles divided by all shingles."""
    return len(left & right) / len(left | right)


# Its random permutations are drawn once: they cost more than a short text's hashes.
_EMPTY = MinHash(num_perm=_NUM_PERM, seed=1)


def _minhash(grams: frozenset[str]) -> MinHash:
    sketch = _EMPTY.copy()
    sketch.update_batch([gram.encode() for gram in sorted(grams)])
    return sketch

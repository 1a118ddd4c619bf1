"""Other spellings of the same question: typing errors, case, white space, digits of other scripts."""

import re
from random import Random

from quality.robustness.words import letters_of, plain_words, with_words

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    key: tuple(row[i] for i in (column - 1, column + 1) if 0 <= i < len(row))
    for row in _ROWS
    for column, key in enumerate(row)
}
"""Of a QWERTY keyboard, on the same row; letters of other scripts have swaps, losses and doubles only."""
_MIN_LETTERS = 3
"""Of a word with typing errors: shorter ones become other words."""

_SPACES = re.compile(r"(?<=\S) +(?=\S)")
_NUMBER = re.compile(r"(?<!\w)[0-9]+(?!\w)")
"""Not part of a word, as in `C3` or `2nd`."""
_ZEROS = {"arabic": "٠", "persian": "۰", "devanagari": "०", "bengali": "০", "fullwidth": "０"}


def with_typos(text: str, kept: frozenset[str], rate: float, draw: Random) -> str:
    """Swapped, lost, doubled and neighbouring letters: `rate` errors a letter, and at least one; never in `kept`."""
    words = [(start, end, letters_of(text[start:end])) for start, end in plain_words(text, kept)]
    words = [word for word in words if len(word[2]) >= _MIN_LETTERS]
    places = [(number, place) for number, (_, _, letters) in enumerate(words) for place in range(len(letters))]
    if not places:
        return text
    for chosen in sorted(draw.sample(range(len(places)), max(1, round(rate * len(places))))):
        number, place = places[chosen]
        _mistype(words[number][2], place, draw)
    parts, position = [], 0
    for start, end, letters in words:
        parts += [text[position:start], *letters]
        position = end
    return "".join([*parts, text[position:]])


def _mistype(letters: list[str], place: int, draw: Random) -> None:
    letter = letters[place]
    following = letters[place + 1] if place + 1 < len(letters) else letter
    near = _NEIGHBOURS.get(letter.lower(), ())
    kinds = ["lost", "doubled"] + ["swapped"] * (following not in ("", letter)) + ["neighbour"] * bool(near)
    kind = draw.choice(kinds)
    if kind == "swapped":
        letters[place : place + 2] = following, letter
    elif kind == "neighbour":
        typed = draw.choice(near)
        letters[place] = typed.upper() if letter.isupper() else typed
    else:
        letters[place] = "" if kind == "lost" else letter * 2


def with_casing(text: str, kept: frozenset[str], draw: Random) -> tuple[str, str]:
    """(variant, text): words in upper, lower or random case; one that changes something, if any does."""
    variants = draw.sample(("upper", "lower", "random"), 3)
    for variant in variants:
        changed = with_words(text, kept, lambda word: _in_case(word, variant, draw))  # noqa: B023 called at once
        if changed != text:
            return variant, changed
    return variants[0], text


def _in_case(word: str, variant: str, draw: Random) -> str:
    if variant == "random":
        return "".join(draw.choice((char.lower(), char.upper())) for char in word)
    return word.upper() if variant == "upper" else word.lower()


def with_white_space(text: str, draw: Random) -> tuple[str, str]:
    """(variant, text): more white space between words or around the text; line breaks and indents of it stay."""
    variant = draw.choice(("doubled", "tabs", "line breaks", "padded") if _SPACES.search(text) else ("padded",))
    if variant == "padded":
        return variant, f"{' ' * draw.randint(1, 4)}{text}{draw.choice(('  ', chr(10), ' ' + chr(10) * 2))}"
    if variant == "doubled":
        return variant, _SPACES.sub(lambda found: found.group() + " " * draw.randint(1, 2), text)
    return variant, _SPACES.sub("\t" if variant == "tabs" else "\n", text)


def with_digits(text: str, kept: frozenset[str], draw: Random) -> tuple[str, str]:
    """(variant, text): the digits 0 to 9 in another script, but for numbers in `kept`."""
    variant = draw.choice(sorted(_ZEROS))
    digits = {ord("0") + n: ord(_ZEROS[variant]) + n for n in range(10)}
    return variant, _NUMBER.sub(
        lambda found: found.group() if found.group() in kept else found.group().translate(digits), text
    )

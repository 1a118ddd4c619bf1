"""Sentences with their last word left out: which of four words of one kind does the model find most likely?"""

import random
from dataclasses import dataclass

_SEED = 13
NUM_CHOICES = 4

_PAIRS: dict[str, dict[str, str]] = {
    "The capital of {} is": {
        "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Germany": "Berlin",
        "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "China": "Beijing",
        "Portugal": "Lisbon", "Ireland": "Dublin", "Norway": "Oslo", "Poland": "Warsaw", "Hungary": "Budapest",
    },
    "The opposite of {} is": {
        "hot": "cold", "big": "small", "up": "down", "early": "late", "rich": "poor", "fast": "slow", "wet": "dry",
        "young": "old", "empty": "full", "dark": "light", "open": "closed", "loud": "quiet", "hard": "soft",
        "strong": "weak", "cheap": "expensive",
    },
    "A young {} is called a": {
        "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "lion": "cub",
        "duck": "duckling", "pig": "piglet", "kangaroo": "joey", "swan": "cygnet",
    },
    "The day after {} is": {
        "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
        "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday",
    },
    "The month after {} is": {
        "January": "February", "February": "March", "March": "April", "April": "May", "May": "June", "June": "July",
        "July": "August", "August": "September", "September": "October", "October": "November",
    },
    "The past tense of the verb {} is": {
        "go": "went", "see": "saw", "eat": "ate", "write": "wrote", "take": "took", "give": "gave", "know": "knew",
        "come": "came", "run": "ran", "begin": "began", "speak": "spoke", "drive": "drove",
    },
    "A person who {} is called a": {
        "bakes bread": "baker", "teaches children": "teacher", "flies planes": "pilot", "writes books": "author",
        "paints pictures": "painter", "treats teeth": "dentist", "grows crops": "farmer", "builds walls": "mason",
        "repairs pipes": "plumber", "cuts hair": "barber", "drives a taxi": "driver", "sings songs": "singer",
    },
}  # fmt: skip
_ENDINGS: tuple[tuple[str, str], ...] = (
    ("It started to rain, so she opened her", "umbrella"),
    ("He was thirsty, so he drank a glass of", "water"),
    ("The baby was tired and fell", "asleep"),
    ("She locked the door and put the key in her", "pocket"),
    ("He cut the bread with a sharp", "knife"),
    ("In the evening, the sun goes", "down"),
    ("She went to the library to borrow a", "book"),
    ("The fisherman threw his net into the", "sea"),
    ("He posted the letter at the", "office"),
    ("They lit the candles on the birthday", "cake"),
    ("The doctor listened to his", "heart"),
    ("She planted the seeds in the", "garden"),
)


@dataclass(frozen=True)
class ClozeQuestion:
    """A beginning, and words that may follow it; the right one is first."""

    beginning: str
    words: tuple[str, ...]


def cloze_choices(num_questions: int) -> list[ClozeQuestion]:
    """Mixed over kinds; a longer list begins with the shorter one."""
    rng = random.Random(_SEED)
    choices = [_choice(rng, ask.format(key), right, list(pairs.values())) for ask, pairs in _PAIRS.items()
               for key, right in pairs.items()]  # fmt: skip
    endings = [word for _, word in _ENDINGS]
    choices += [_choice(rng, beginning, right, endings) for beginning, right in _ENDINGS]
    rng.shuffle(choices)
    return choices[:num_questions]


def _choice(rng: random.Random, beginning: str, right: str, kind: list[str]) -> ClozeQuestion:
    wrong = rng.sample([word for word in kind if word != right and f" {word}" not in beginning], NUM_CHOICES - 1)
    return ClozeQuestion(beginning, (right, *wrong))

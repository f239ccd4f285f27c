"""Whether two short answers say the same."""

import re
import string

_MARKS = str.maketrans("", "", string.punctuation.replace("-", "").replace(".", ""))


def normalised(answer: str) -> str:
    """Its first line with content, in lower case, without articles, punctuation and thousands' commas.

    Signs and decimal points of numbers stay. Answers that say the same in other words count as different.
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    words = (lines[0] if lines else "").lower().translate(_MARKS).split()
    bare = (re.sub(r"^-(?!\d)|(?<!\d)\.|\.(?!\d)", "", word) for word in words)
    return " ".join(word for word in bare if word and word not in ("a", "an", "the"))


def agreement(answer: str, samples: list[str]) -> float:
    """The share of `samples` that say what `answer` does, by normalised equality (as in arXiv 2203.11171)."""
    return sum(normalised(each) == normalised(answer) for each in samples) / len(samples)

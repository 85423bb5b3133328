"""Makes train.tsv and held-out.tsv: sentences as they were written, and the same words in another order.

    python3 make.py emma.txt mansfield-park.txt northanger-abbey.txt persuasion.txt pride-and-prejudice.txt \
        sense-and-sensibility.txt bible.txt

The texts are UTF-8, paragraphs apart by an empty line. Held-out sentences come from the last 5 % of each text, cut where
`pretrain` cuts it, so that the bundled models have not been trained on them. Needs nothing but Python 3.
"""

import random
import re
import sys
from pathlib import Path

HELD_OUT_PART = 0.05
TRAIN_PAIRS, HELD_OUT_PAIRS = 2200, 500
WORDS = range(8, 25)  # of a sentence
LEAST_MOVABLE = 5


def cut(path):
    """The text before and after the place where `pretrain` cuts it."""
    text = Path(path).read_bytes()
    place = int(len(text) * (1 - HELD_OUT_PART))
    while place < len(text) and 0x80 <= text[place] < 0xC0:
        place += 1
    place = text.find(b"\n\n", place)
    return text[:place].decode(), text[place:].decode()


def sentences(text):
    """Plain sentences: one line, no digits, quotation marks or headings."""
    for paragraph in text.split("\n\n"):
        for sentence in re.split(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.) +", " ".join(paragraph.split())):
            plain = re.fullmatch(r"[A-Z][A-Za-z ,;:'-]*[.!?]", sentence)
            if plain and len(sentence.split()) in WORDS:
                yield sentence


def disturb(sentence, rng):
    """The sentence with its movable words in random order; None where there are too few, or the order is the old one.

    Movable are lower-case words without punctuation, neither the first nor the last: every word keeps its spelling and the
    space before it, so the tokens of both sentences are the same and only their order differs.
    """
    words = sentence.split(" ")
    places = [i for i, word in enumerate(words) if 0 < i < len(words) - 1 and re.fullmatch("[a-z]+", word)]
    movable = [words[i] for i in places]
    rng.shuffle(movable)
    for place, word in zip(places, movable):
        words[place] = word
    disturbed = " ".join(words)
    return disturbed if len(places) >= LEAST_MOVABLE and disturbed != sentence else None


def write(path, texts, count, rng):
    """The same number of sentences from every text, as far as they reach, in random order."""
    pools = [list(dict.fromkeys(sentences(text))) for text in texts]
    for pool in pools:
        rng.shuffle(pool)
    pairs = []
    while len(pairs) < count and any(pools):
        for pool in pools:
            if pool and len(pairs) < count:
                natural = pool.pop()
                disturbed = disturb(natural, rng)
                if disturbed:
                    pairs.append((natural, disturbed))
    assert len(pairs) == count, f"{path}: only {len(pairs)} sentences"
    lines = [f"natural\t{natural}\n" for natural, _ in pairs] + [f"disturbed\t{other}\n" for _, other in pairs]
    rng.shuffle(lines)
    path.write_text("".join(lines))
    print(f"{path.name}: {len(lines)} sentences")


def main():
    folder = Path(__file__).resolve().parent
    texts = [cut(path) for path in sys.argv[1:]]
    write(folder / "train.tsv", [before for before, _ in texts], TRAIN_PAIRS, random.Random(1))
    write(folder / "held-out.tsv", [after for _, after in texts], HELD_OUT_PAIRS, random.Random(2))


main()

"""The accuracy with which the embedding matcher tells facts apart, by threshold.

  python -m benchmarks.matcher

Every fact of the schema in two phrasings of ours. Each phrasing is matched with profiles of four facts: its own fact
among three others, and the same slot with another value among them; with that one the fact as `slot: value`, too.
"""

from __future__ import annotations

import random

from pal_jax.judges.embedding import SentenceEncoder
from pal_jax.models.files import packages
from pal_jax.recipes.rlpa.matcher import make_embedding_matcher
from pal_jax.recipes.rlpa.people import SCHEMA

PHRASINGS = {
    'food': ('favorite dish is {value}', 'loves to eat {value}'),
    'pet': ('has a {value} at home', 'owns a pet {value}'),
    'job': ('works as a {value}', 'profession: {value}'),
    'city': ('lives in {value}', 'home town: {value}'),
    'instrument': ('plays the {value}', 'makes music on the {value}'),
    'sport': ('does {value} twice a week', 'favorite sport: {value}'),
    'drink': ('likes to drink {value}', 'favorite beverage is {value}'),
    'month': ('was born in {value}', 'favorite month: {value}'),
    'language': ('is learning {value}', 'studies the {value} language'),
    'color': ('favorite colour is {value}', 'likes the color {value}'),
    'music': ('listens to {value}', 'enjoys {value} music'),
    'hobby': ('spends the evenings on {value}', 'pastime: {value}'),
}


FACTS = [(slot.name, value) for slot in SCHEMA for value in (*slot.known, *slot.unseen)]


def cases(seed: int = 0) -> list[tuple[str, list[str], list[str], str]]:
    """A phrasing, a profile with its fact, one with another value in its place, and the fact as `slot: value`."""
    rng, rows = random.Random(seed), []
    for slot, value in FACTS:
        for phrasing in PHRASINGS[slot]:
            others = [f'{s}: {v}' for s, v in rng.sample([fact for fact in FACTS if fact[0] != slot], 3)]
            wrong = rng.choice([v for s, v in FACTS if s == slot and v != value])
            right = f'{slot}: {value}'
            rows.append((phrasing.format(value=value), [*others, right], [*others, f'{slot}: {wrong}'], right))
    return rows


def figures(encode: SentenceEncoder, threshold: float) -> tuple[float, float, float]:
    """Recall, and the shares of phrasings and of `slot: value` that count though the profile has another value."""
    match = make_embedding_matcher(encode, threshold=threshold)
    phrased, right, wrong, plain = zip(*cases(), strict=True)
    counts = (match([[text] for text in texts], facts) for texts, facts in
              ((phrased, right), (phrased, wrong), (plain, wrong)))  # fmt: skip
    recall, false, plain_false = (sum(count or 0 for count in by_phrasing) / len(phrased) for by_phrasing in counts)
    return recall, false, plain_false


def main() -> None:
    encode = SentenceEncoder(packages.encoder_folder('minilm'))
    print(f'{len(cases())} phrasings of {len(FACTS)} facts\nthreshold  recall  precision  wrong values  as slot: value')
    for threshold in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8):
        recall, false, plain = figures(encode, threshold)
        print(f'{threshold:9.2f} {recall:7.3f} {recall / (recall + false):10.3f} {false:13.3f} {plain:15.3f}')


if __name__ == '__main__':
    main()

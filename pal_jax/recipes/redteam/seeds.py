"""The seeds of Self-RedTeam: the embedded stand-ins, or records in the form of WildJailbreak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pal_jax.data import chats, records
from pal_jax.data.holdouts import fewer, normal
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.judges.dilemmas import Split
from pal_jax.recipes.redteam.attack import Seed
from pal_jax.recipes.redteam.settings import EMBEDDED, SeedSettings
from pal_jax.recipes.redteam.stand_ins import make_seeds
from pal_jax.run import files
from pal_jax.run.forecast import counted

# The values of `data_type` say whether the request is harmful.
KINDS = {'vanilla_harmful': True, 'vanilla_benign': False}


def read_seeds(settings: SeedSettings, seed: int, skip: int, tokenizer: Tokenizer) -> tuple[list[Seed], list[Seed]]:
    """The seeds to learn from and those to test on, which have no request in common.

    `skip` dilemmas of the embedded corpus are left to the examples of the start policy.

    Raises:
      ValueError: a source or a record of it is wrong, or a kind of seeds is missing.
    """
    # Tests are read first: a seed in both sources is lost to training and not to the test.
    test = _fitting(_given(settings.test, 'test', settings.test_count, seed, 0), settings, tokenizer)
    tested = {normal(one.request) for one in test}
    train = _fitting(_given(settings.train, 'train', settings.train_count, seed, skip), settings, tokenizer)
    train = [one for one in train if normal(one.request) not in tested]
    for split, seeds, least in (('train', train, 2), ('test', test, 1)):
        for harmful, word in ((True, 'harmful'), (False, 'harmless')):
            if (count := sum(one.harmful == harmful for one in seeds)) < least:
                raise ValueError(
                    f'seeds.{split}={getattr(settings, split)} has {count} {word} seeds of at most seeds.max_length='
                    f'{settings.max_length} tokens that are not tested on; give {least} or more'
                )
    return train, test


def counted_seeds(settings: SeedSettings, train: Sequence[Seed], test: Sequence[Seed]) -> str:
    """A line on the numbers of seeds, with warnings where a kind has fewer than asked for."""
    line = f'{counted(len(train), "seed")} to learn from, {counted(len(test), "other")} to test on'
    for split, count, seeds in (('train', settings.train_count, train), ('test', settings.test_count, test)):
        least = min(sum(one.harmful == harmful for one in seeds) for harmful in (True, False))
        line += fewer(
            f'seeds.{split}_count', count, least, f'{getattr(settings, split)} has no more of a kind that fit'
        )
    return line


def check(settings: SeedSettings, seed: int) -> None:
    """Raises ValueError where a source of seeds cannot be read, or a record of it is wrong."""
    for source in (settings.train, settings.test):
        if source != EMBEDDED:
            _given(source, 'train', 0, seed, 0)


def by_kind(seeds: Sequence[Seed]) -> list[list[Seed]]:
    """The seeds in four lists: harmful and harmless ones, each those that are generated first."""
    return [
        [one for one in seeds if (one.harmful, one.generated) == (harmful, generated)]
        for harmful in (True, False)
        for generated in (True, False)
    ]


def kinds_of(seeds: Sequence[Seed], roles: str) -> list[list[Seed]]:
    """The seeds by kind."""
    if roles in ('attacker', 'defender'):
        # An attacker by itself has its move in every game, and a defender by itself the only one.
        seeds = [one._replace(generated=roles == 'attacker') for one in seeds]
    return [kind for kind in by_kind(seeds) if kind]


def _given(source: str, split: Split, count: int, seed: int, skip: int) -> list[Seed]:
    if source == EMBEDDED:
        return make_seeds(count, split=split, seed=seed, skip=skip)
    # A source may repeat a request, which would count twice in a test.
    seeds = list(dict.fromkeys(to_seed(place, record) for place, record in records.rows(source)))
    by_harm = [[one for one in seeds if one.harmful == harmful][: count or None] for harmful in (True, False)]
    # Half of either kind are rewritten by the attacker, drawn once for the whole run.
    return [
        one._replace(generated=bool(rank % 2 == 0))
        for k, kind in enumerate(by_harm)
        for one, rank in zip(kind, np.random.default_rng([seed, k]).permutation(len(kind)), strict=True)
    ]


def to_seed(place: str, record: Mapping[str, object]) -> Seed:
    """A record as a seed. Raises ValueError, which names the place, where a field is missing or wrong."""
    request, kind, completion = record.get('vanilla'), record.get('data_type'), record.get('completion') or ''
    if not isinstance(request, str) or not request.strip():
        raise ValueError(f'{place}: vanilla is {files.short_repr(request)}; give a text, or delete the row')
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f'{place}: data_type is {files.short_repr(kind)}; give one of {", ".join(KINDS)}')
    if not isinstance(completion, str):
        raise ValueError(f'{place}: completion is {files.short_repr(completion)}; give a text, or leave it out')
    # An answer to a harmful request is never taught.
    return Seed(request, KINDS[kind], completion='' if KINDS[kind] else completion)


def _fitting(seeds: Sequence[Seed], settings: SeedSettings, tokenizer: Tokenizer) -> list[Seed]:
    return [one for one in seeds if len(tokenizer.chat(chats.as_chat(one.request))) <= settings.max_length]

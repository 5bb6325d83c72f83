"""From reward to policy: with planted policies the oracle's soup is the best; a tiny model goes all the way."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from benchmarks import personal_behaviour as behaviour
from benchmarks import personal_policies as bench
from pal_jax.models import lora

TEXTS = [
    'No.', 'yes and no and yes and no and yes and no and yes and no', 'Why? Who? How?', 'Thanks! Sure, I hope so!',
    'Notwithstanding considerable imprecision', '- one\n- two\n- three',
]  # fmt: skip
SIZES = bench.QUICK._replace(
    learning=4, held=2, replies=3, tokens=8, seen=6, new=2, steps=2, batch=2, samples=2, rank=2
)


class Planted:
    """Policies that are distributions over texts; that of a pole mostly says what its pole likes best."""

    def __init__(self, source, sizes, seed):
        self.rng, self.seen = np.random.default_rng(seed), list[bench.Mixture]()

    def base_replies(self, prompts, n):
        return [TEXTS[k] for k in self.rng.integers(len(TEXTS), size=len(prompts) * n)]

    def read(self, asked, texts):
        marks = behaviour.counts(texts) / [1.0, 1.0, 1.0, 0.3, 1.0]
        return np.hstack([marks, 1e-3 * self.rng.normal(size=(len(texts), 3))]).astype(np.float32)

    def train(self, score, prompts, tell):
        best = score([[prompts[0]]], [TEXTS])[0].argmax()
        for i in range(bench.QUICK.steps):
            tell(i, {'reward': 0.0})
        return 0.1 / len(TEXTS) + 0.9 * (np.arange(len(TEXTS)) == best)

    def share(self, policies, mixture):
        self.seen.append(mixture)
        return np.asarray(mixture) @ np.stack(policies) if mixture else np.full(len(TEXTS), 1 / len(TEXTS))

    def answers(self, policies, mixtures, prompts, n):
        draws = np.random.default_rng(1).random(len(prompts) * n)
        return [[TEXTS[k] for k in np.searchsorted(self.share(policies, mixture).cumsum()[:-1], draws)]
                for mixture in mixtures]  # fmt: skip

    def logprobs(self, policies, mixture, prompts, texts):
        share = self.share(policies, mixture)
        return np.log([share[TEXTS.index(text)] for text in texts]), np.array([len(text) for text in texts])


class Guess:
    """A reward that knows nobody."""

    def __init__(self, seed):
        self.seed = seed

    def margins(self, asked):
        return self.rewards(asked.difference, [0])[0]

    def rewards(self, x, users):
        return np.tile(x @ np.random.default_rng(self.seed).normal(size=x.shape[1]), (len(users), 1))


@pytest.fixture
def prompts(tmp_path):
    (path := tmp_path / 'prompts.jsonl').write_text(''.join(f'{{"prompt": "Number {i}?"}}\n' for i in range(16)))
    return path


def figures_of(printed):
    """The rows of the last table, and the record after it."""
    lines = printed.splitlines()
    head = max(i for i, line in enumerate(lines) if line.startswith('| method'))
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[head + 2 :] if line.startswith('|')]
    return {row[0]: [float(cell.split()[0]) if cell else np.nan for cell in row[1:]] for row in rows}, json.loads(
        lines[-1]
    )


def test_weights_have_the_sum_one_and_the_order_of_rewards():
    scores = np.random.default_rng(0).normal(size=(7, 5))
    weights = bench.weights_of(scores)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-12)
    assert (weights.argsort(axis=-1) == scores.argsort(axis=-1)).all()
    np.testing.assert_allclose(bench.weights_of(3.0 * scores + 2.0), weights, atol=1e-12)  # a reward has no unit
    np.testing.assert_allclose(bench.weights_of(np.ones((1, 4))), 0.25)


def test_of_planted_policies_the_oracle_makes_the_best_soup(monkeypatch, capsys, prompts):
    made = []
    monkeypatch.setattr(bench, 'QUICK', bench.QUICK._replace(poles=bench.POLES, new=12, answers=40))
    monkeypatch.setattr(behaviour, 'learn', lambda name, train, known, seed: Guess(len(name)))

    def make(*args):
        made.append(Planted(*args))
        return made[0]

    bench.main([f'--prompts={prompts}', '--quick', '--methods=lore,pref', '--ppo-people=3'], make)
    rows, record = figures_of(capsys.readouterr().out)
    assert rows.keys() == {'shared', 'lore', 'pref', 'shuffled', 'oracle', 'base', 'uniform'}
    utility = {name: row[1] for name, row in rows.items()}
    assert max(utility, key=utility.__getitem__) == 'oracle' and utility['oracle'] > utility['uniform'] + 0.2
    assert rows['oracle'][4] > max(rows[name][4] for name in ('shared', 'lore'))
    assert rows['oracle'][3] > 0.55 and rows['base'][3] == 0.5
    assert np.isnan([rows['base'][0], rows['pref'][4]]).all()
    np.testing.assert_allclose([sum(mixture) for mixture in made[0].seen if mixture], 1.0, atol=1e-9)
    assert record['tau']['soup utility']['rewards'] == 4 and record['tau']['PPO utility']['people'] == 3


def test_a_soup_of_one_policy_is_that_policy_and_no_soup_the_base():
    models, asked, texts = bench.make_models('random:tiny', SIZES, 0), ['Hi?', 'Why?'], ['a', 'longer', 'yes', 'no!']
    first, _ = lora.split(lora.attach(models.base, rank=2, alpha=4.0, targets='all-linear', key=jax.random.key(0)))
    policies = [jax.tree.map(lambda x: x + 0.1, first), jax.tree.map(np.zeros_like, first)]
    read = [models.logprobs(policies[::way], mixture, asked, texts)
            for way, mixture in ((1, (1.0, 0.0)), (-1, (0.0, 1.0)), (1, (0.0, 1.0)), (1, None))]  # fmt: skip
    (trained, lengths), (alone, _), (nothing, _), (base, _) = read
    assert trained.shape == (4,) and lengths.tolist() == [1, 6, 3, 3]
    np.testing.assert_array_equal(trained, alone)
    np.testing.assert_array_equal(nothing, base)
    assert np.abs(trained - base).min() > 1e-4


@pytest.mark.slow
def test_a_tiny_model_goes_all_the_way(monkeypatch, capsys, prompts):
    monkeypatch.setattr(bench, 'QUICK', SIZES._replace(poles=('length', 'warmth')))
    monkeypatch.setattr(behaviour, 'learn', lambda name, train, known, seed: Guess(len(name)))
    made = []

    def make(*args):
        made.append(bench.make_models(*args))
        return made[0]

    bench.main([f'--prompts={prompts}', '--quick', '--source=random:tiny', '--methods=', '--ppo-methods=shared'], make)
    rows, record = figures_of(capsys.readouterr().out)
    assert np.isfinite(rows['shared'][4]) and record['sizes']['rank'] == 2
    moved = made[0].train(lambda readings, replies: np.arange(4.0).reshape(2, 2), ['Hi?', 'Why?'], lambda i, step: None)
    policies = [moved, jax.tree.map(np.zeros_like, moved)]
    mixtures = [(1.0, 0.0), (0.0, 1.0), None, (1.0, 0.0)]
    one, nothing, plain, again = made[0].answers(policies, mixtures, ['Hi?', 'Why?'], 2)
    assert one == again and nothing == plain and len(one) == 4  # all by the same random numbers

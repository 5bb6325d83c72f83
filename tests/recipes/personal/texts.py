"""Files of pairs of texts between two tastes, and PAL's runs on them with a tiny random decoder."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np

from pal_jax.recipes.personal.pal import large as pal_large
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.run import checkpoint, devices
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import KEPT, Context
from pal_jax.run.settings import to_dict
from tests import configs

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]))

B = {'model.variant': 'B', 'model.projector': 'mlp1-gelu', 'model.dtype': 'float32'}

get_config = functools.partial(configs.load, 'pal')


def write_replies(path: Path) -> Path:
    """Write the answers of twenty people to words with more a or more z: half of them say yes to a, half to z."""
    rng = np.random.default_rng(0)
    words = [''.join(rng.choice(list('az'[i % 2] * 6 + 'mn'), 12)) for i in range(40)]
    with path.open('w') as file:
        for person in range(20):
            for i, word in enumerate(words):
                answers = ('yes', 'no') if i % 2 == person % 2 else ('no', 'yes')
                record = dict(zip(('chosen', 'rejected'), answers, strict=True))
                file.write(
                    json.dumps({'user': f'p{person}', 'group': str(person % 2), 'prompt': word, **record}) + '\n'
                )
    return path


def write_statements(path: Path) -> Path:
    """Write pairs of a statement full of a and one full of z; two kinds of people agree with the ones or the others."""
    rng = np.random.default_rng(0)
    words = [[''.join(rng.choice(list(letter * 6 + 'mn'), 12)) for _ in range(20)] for letter in 'az']
    with path.open('w') as file:
        for person in range(20):
            for _ in range(60):
                sides = [words[kind][rng.integers(20)] for kind in (person % 2, 1 - person % 2)]
                record = {'user': f'p{person}', 'chosen': sides[0], 'rejected': sides[1], 'group': str(person % 2)}
                file.write(json.dumps(record) + '\n')
    return path


def small(path, variant='text-large', **changes):
    """The config of a short run on the pairs of a file."""
    values = {
        'data': str(path), 'text.source': 'random:tiny', 'text.layers': 0, 'text.dtype': 'float32', 'text.width': 6,
        'text.pool': 'mean', 'text.folder': str(path.parent / 'states'), 'split.seeds': 1, 'prototypes': (1, 2),
        'split.control': False, 'baselines.own': False, 'baselines.embedding': 0, 'new.counts': (0, 5),
        'new.steps': 50, 'batch': 64, 'updates': 20, 'total_steps': 6, 'checkpoint.every': 1,
    }  # fmt: skip
    if variant == 'text-large':
        values |= {'hold.steps': 0, 'decoder.statements': 12, 'decoder.lora.rank': 2, 'decoder.optimizer.lr': 3e-4}
    return get_config(variant, **{**values, **changes})


def run(config, steps, context=ONE):
    """The recipe of a config and its state after some steps."""
    recipe = (pal_large if config.recipe == 'personal.pal_large' else pal).make(config, context)
    state, host = recipe.init()
    for i in range(steps):
        state, host, *_ = recipe.step(state, host, i)
    return recipe, state


def finished(config, workdir, steps=1, evaluation=None):
    """The recipe and the state of a run after some steps, and its last evaluation, by default that K = 2 was chosen;
    its folder is as the training loop leaves it."""
    recipe, state = run(config, steps)
    checkpoint.write_config(workdir, to_dict(config))
    recipe.plan.keep(workdir / KEPT)
    checkpoints = Checkpoints(workdir, recipe.plan.abstract)
    checkpoints.save(steps, state, {})
    checkpoints.wait()
    found = {'chosen_prototypes': [2]} if evaluation is None else evaluation(recipe, state)
    record = {'step': steps, 'stage': 'final', **found}
    (workdir / 'evals.jsonl').write_text(json.dumps(record) + '\n')
    return recipe, state, record

"""Pairs from samples with rewards, and from a policy's own dialogues into DPO."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import jax
import pytest

from pal_jax.commands import collect
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes import dpo
from pal_jax.recipes.rlpa.profiles import render_completion
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from pal_jax.types import Completion, Dialogue, Person, Sample, Turn
from tests import configs


def sample(text, reward, ok=True):
    dialogue = Dialogue(Person('a', ('pet: cat',)), (Turn('user', 'Hello'),))
    return Sample((), Completion(text, (1,), (0.0,), 'stop'), rewards=(reward,), source=dialogue, ok=ok)


def test_the_best_stands_against_the_worst_that_was_judged():
    pair = collect.best_and_worst(
        [sample('a', 0.5), sample('b', 1.0), sample('c', 1.0), sample('d', 0.0, ok=False)], 'S'
    )
    assert pair == {
        'prompt': [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'Hello'}],
        'chosen': [{'role': 'assistant', 'content': 'b'}],
        'rejected': [{'role': 'assistant', 'content': 'a'}],
        'chosen_reward': 1.0,
        'rejected_reward': 0.5,
    }
    assert collect.best_and_worst([sample('a', 0.5), sample('b', 0.5)], '') is None
    assert collect.best_and_worst([sample('a', 0.5, ok=False)], '') is None


def writing(requests, told=None):
    """A policy that writes its format, now with a question and now without."""
    replies = [('What is your job?', 'Nice.', 'Do you cook?')[request.seed % 3] for request in requests]
    texts = [render_completion('- pet: ferret\n', reply) for reply in replies]
    return [Completion(text, tuple(byte_tokenizer().encode(text)), (), 'stop') for text in texts]


@pytest.mark.slow
def test_a_policys_samples_become_what_dpo_learns_from(monkeypatch, tmp_path):
    monkeypatch.setattr(collect, 'open_decoder', lambda *_: (writing, byte_tokenizer()))
    answers = {'dialogue.n_samples_per_prompt': 4, 'dialogue.learnt_per_prompt': 0}
    config = configs.load('rlpa', **{'dialogue.people': 6, 'eval.people': 2, **answers})
    pairs = list(collect.collect(config, None, None))
    assert 0 < len(pairs) <= 12
    assert all(pair['chosen_reward'] > pair['rejected_reward'] for pair in pairs)
    rounds = [sum(message['role'] == 'user' for message in pair['prompt']) for pair in pairs]
    assert set(rounds) == {1, 2}  # dialogues went on
    path = tmp_path / 'pairs.jsonl'
    path.write_text(''.join(json.dumps(pair) + '\n' for pair in pairs))
    context = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
    recipe = dpo.make(configs.load('dpo', **{'data.train': str(path), 'data.max_length': 4096}), context)
    state, host = recipe.init()
    _, _, _, metrics = recipe.step(state, host, 0)
    assert metrics['left_out'] == 0 and metrics['margin'] == pytest.approx(0.0, abs=1e-4)


def test_a_number_of_prompts_is_kept_to(monkeypatch):
    monkeypatch.setattr(collect, 'open_decoder', lambda *_: (writing, byte_tokenizer()))
    monkeypatch.setattr(collect, 'best_and_worst', lambda group, system: dataclasses.asdict(group[0].source))
    config = configs.load('rlpa', **{'dialogue.people': 6, 'eval.people': 2})
    assert len(list(collect.collect(config, None, 5))) == 5

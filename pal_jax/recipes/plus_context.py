"""What is told of people to a reward model, and to whoever else is to know: summaries, what baselines have instead,
and replies written after a summary."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.packing import Example
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.evals import conditioning
from pal_jax.feedback import summaries
from pal_jax.feedback.sharing import share_model
from pal_jax.learners.policy import PolicyLearner
from pal_jax.learners.reward import Pairs, pack_pairs, to_score
from pal_jax.recipes import sampler
from pal_jax.recipes.chat_models import ChatModels
from pal_jax.recipes.recipe import Config, Context, Policy
from pal_jax.runtime import sharding
from pal_jax.types import ChatModel, Choice, Dialogue, Exhibit, History, Person, Sample, Told, Turn

WRITTEN = ('summary', 'untrained')  # by a model

State = dict[str, Any]  # 'reward', and 'policy' where one writes
PairUp = Callable[[Sequence[str], Sequence[Sequence[Choice]]], Pairs]


class Written(NamedTuple):
    """What the reward model reads of people; the samples it was taken from, where a model wrote it."""

    texts: list[str]
    samples: list[Sample]


def of_whom(config: Config, people: Sequence[History], step: tuple[int, ...]) -> Sequence[History]:
    """Whose choices go with what is told of these people: their own, or, for the control, somebody's at random."""
    others = np.random.default_rng((config.seed, *step, 1)).permutation(len(people))
    return [people[k] for k in others] if config.shuffled else people


def make_writer(config: Config, policy: Policy, learner: PolicyLearner, ctx: Context):
    """Tells of people: `n` summaries of each, one after the other, or what a baseline reads instead."""
    if config.reads not in WRITTEN:
        return lambda state, people, n, *_: Written(
            [summaries.given(p, config.reads) for p in people for _ in range(n)], []
        )
    decoder, tokenizer = sampler.make_decoder(config, policy, ctx), policy.tokenizer
    prefill = tokenizer.encode(config.summary.prefill) if config.summary.prefill else []

    def write(state: State, people: Sequence[Told], n: int, temperature: float, seed: Sequence[int]) -> Written:
        sampling = dataclasses.replace(sampler.make_sampling(config), temperature=temperature)
        prompts = [(*tokenizer.chat(list(p.ask or summaries.ask(p.context))), *prefill) for p in people]
        told = [Dialogue(Person(p.user, ()), (Turn('user', p.context),)) for p in people]
        decoder.load(learner.weights(state['policy']))
        samples = sampler.sample(decoder, told, prompts, n, sampling, seed)
        decoder.release()
        return Written([summaries.extract(config.summary.prefill + each.completion.text) for each in samples], samples)

    return write


def make_pairs(config: Config, tokenizer: Tokenizer, ctx: Context):
    """What the reward model reads."""
    ways, micro_rows = sharding.batch_ways(ctx.mesh), config.reward_model.micro_rows

    def example(text: str, prompt: str, reply: str) -> Example:
        asked = tokenizer.chat([dict(message) for message in summaries.question(text, prompt)])
        return to_score(asked, [*tokenizer.encode(reply), tokenizer.stop_ids[0]])

    def pair_up(texts: Sequence[str], choices: Sequence[Sequence[Choice]]) -> Pairs:
        """A row for each summary with the replies of all its choices, of which the last is to be learnt from."""
        rows = [
            [example(text, c.prompt, reply) for c in each for reply in (c.chosen, c.rejected)]
            for text, each in zip(texts, choices, strict=True)
        ]
        return pack_pairs(rows, ctx.mesh, ways=ways, micro_rows=micro_rows)

    return pair_up


def make_condition(config: Config, pair_up: PairUp):
    """Figures of replies that the model of `config.condition` writes to people, with and without a summary; nothing
    where it names none, or of no people.

    The model is asked in the words that the reward model reads. It has not seen a summary before, and is not trained.

    Raises:
      ValueError: there is no such model.
    """
    models = ChatModels(config)
    share = functools.partial(share_model, shares=sampler.make_shares(config))
    model: ChatModel | None = models.choose('condition', config.condition, share) if config.condition else None

    def condition(
        people: Sequence[History],
        describe: Callable[[Sequence[History]], list[str]],
        gaps: Callable[[Pairs], np.ndarray],
    ) -> tuple[dict[str, Any], list[Exhibit]]:
        if not model or not people:
            return {}, []
        record, told = conditioning.personalise(
            model, lambda texts, choices: gaps(pair_up(texts, choices)), people, describe(people), seed=config.seed
        )
        if not record['written']:
            raise RuntimeError(f'condition={config.condition} wrote no reply: {models.last_error or "they are empty"}')
        return record | models.usage, [told]

    return condition

"""What is told of people to a reward model, and to whoever else is to know: summaries, what baselines have instead,
and replies written after a summary."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.histories import History, Told, content
from pal_jax.data.packing import Example, Group, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.evals import conditioning
from pal_jax.feedback import summaries
from pal_jax.feedback.sharing import share_model
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.scorer import Pairs, Scorer, ScorerState, pack_replies, to_score
from pal_jax.learners.training import MULTIPLE
from pal_jax.parts import sampler
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.recipe import Config, Context, Policy
from pal_jax.runtime import sharding
from pal_jax.types import ChatModel, Choice, Exhibit, Metrics, Sample

WRITTEN = ('summary', 'untrained')  # by a model

State = dict[str, Any]  # 'reward', and 'policy' where one writes
Pack = Callable[[Sequence[str], Sequence[Sequence[Choice]]], Pairs]
BRANCHES = 8  # of a group that is compared: what a text and prompt have more starts another group


class Written(NamedTuple):
    """What the reward model reads of people; the samples it was taken from, where a model wrote it."""

    texts: list[str]
    samples: list[Sample]


def of_whom(
    config: Config, people: Sequence[History], train: Sequence[History], step: tuple[int, ...]
) -> Sequence[History]:
    """Whose choices go with what is told of these people: their own, or, for the control, others' of `train`.

    Raises:
      ValueError: nobody of `train` is somebody else, by name and by content.
    """
    if not config.shuffled:
        return people
    rng = np.random.default_rng((config.seed, *step, 1))

    def somebody_else(person: History) -> History:
        mine, drawn = content(person), (train[k] for k in rng.permutation(len(train)))
        found = next((other for other in drawn if other.user != person.user and content(other) != mine), None)
        if found is None:
            raise ValueError(f'shuffled: nobody else to learn from is another than {person.user}; give other people')
        return found

    return list(map(somebody_else, people))


def make_writer(config: Config, policy: Policy, learner: PolicyLearner, ctx: Context):
    """Tells of people: summaries of each, one after the other, drawn at these temperatures, or what a baseline reads
    instead."""
    if config.reads not in WRITTEN:
        return lambda state, people, temperatures, *_: Written(
            [summaries.given(p, config.reads) for p in people for _ in temperatures], []
        )
    decoder, tokenizer = sampler.make_decoder(config, policy, ctx), policy.tokenizer
    prefill = tokenizer.encode(config.summary.prefill) if config.summary.prefill else []
    plain = sampler.make_sampling(config)

    def write(state: State, people: Sequence[Told], temperatures: Sequence[float], seed: Sequence[int]) -> Written:
        samplings = [dataclasses.replace(plain, temperature=t) for t in temperatures]
        prompts = [(*tokenizer.chat(list(p.ask or summaries.ask(p.context, config.form))), *prefill) for p in people]
        decoder.load(learner.weights(state['policy']))
        samples = sampler.sample(decoder, tokenizer, prompts, samplings, seed, sources=people)
        decoder.release()
        return Written([summaries.extract(config.summary.prefill + each.completion.text) for each in samples], samples)

    return write


class PairUp(NamedTuple):
    """What the reward model reads: texts, each with its choices, all of as many.

    learn: a group of replies for each text, to be learnt from. What stands there twice, with the same choices, is read
      once and counts twice.
    compare: for gaps alone: a reply is read once after a text and a prompt, in however many choices it is.
    """

    learn: Pack
    compare: Pack


def make_pairs(config: Config, tokenizer: Tokenizer, ctx: Context) -> PairUp:
    settings = config.reward_model
    packing = {'ways': sharding.batch_ways(ctx.mesh), 'micro_rows': settings.micro_rows}
    # Rows that texts share are all as long, so that one program reads them.
    packing |= {'row_tokens': settings.row_tokens, 'multiple': settings.row_tokens or MULTIPLE}

    def learn(texts: Sequence[str], choices: Sequence[Sequence[Choice]]) -> Pairs:
        alike: dict[tuple[str, tuple[Choice, ...]], int] = {}
        told = zip(texts, map(tuple, choices), strict=True)
        of = np.array([alike.setdefault(each, len(alike)) for each in told])
        groups = [to_group(tokenizer, text, itertools.chain(*map(sides, own))) for text, own in alike]
        pairs = pack_replies(groups, ctx.mesh, times=np.bincount(of), **packing)
        return pairs.pick(of[:, None], np.arange(2 * len(choices[0]))[None])

    def compare(texts: Sequence[str], choices: Sequence[Sequence[Choice]]) -> Pairs:
        wanted = [[(text, *side) for c in each for side in sides(c)] for text, each in zip(texts, choices, strict=True)]
        asked: dict[tuple[str, str], dict[str, None]] = {}
        for text, prompt, reply in itertools.chain(*wanted):
            asked.setdefault((text, prompt), {})[reply] = None
        groups: list[Group] = []
        places: dict[tuple[str, str, str], tuple[int, int]] = {}  # group and branch of a reply
        for (text, prompt), replies in asked.items():
            for start in range(0, len(replies), BRANCHES):
                part = list(replies)[start : start + BRANCHES]
                places |= {(text, prompt, reply): (len(groups), k) for k, reply in enumerate(part)}
                groups.append(to_group(tokenizer, text, [(prompt, reply) for reply in part]))
        where = np.array([[places[each] for each in own] for own in wanted])
        return pack_replies(groups, ctx.mesh, n=BRANCHES, **packing).pick(where[..., 0], where[..., 1])

    return PairUp(learn, compare)


def to_group(tokenizer: Tokenizer, summary: str, asked: Iterable[tuple[str, str]]) -> Group:
    """Replies to prompts, given as (prompt, reply), after what a summary says of a person."""

    def example(prompt: str, reply: str) -> Example:
        question = tokenizer.chat([dict(message) for message in summaries.question(summary, prompt)])
        return to_score(question, [*tokenizer.encode(reply), tokenizer.stop_ids[0]])

    return shared_prompt([example(*each) for each in asked])


def sides(choice: Choice) -> Sequence[tuple[str, str]]:
    """The replies of a choice with their prompt, the chosen one first."""
    return (choice.prompt, choice.chosen), (choice.prompt, choice.rejected)


def make_reading(config: Config, reader: Scorer, pair_up: PairUp):
    """What the reward model makes of summaries, as many of each person: a reward for each, by the choice that pays and
    the model as it is; then the model learns the choices that teach, by the first `summary.taught` of each person.

    While nobody is paid there is one summary a person, and its reward is of the choices that teach.
    """
    train, std = config.reward_model.train, config.reward_model.std

    def read(
        state: ScorerState, texts: Sequence[str], choosers: Sequence[History], *, pays: bool, rate: float
    ) -> tuple[ScorerState, np.ndarray, Metrics]:
        count = len(texts) // len(choosers)
        first = min(count, config.summary.taught)
        lesson = [text for k, text in enumerate(texts) if k % count < first]
        teach = [person.train for person in choosers for _ in range(first)]
        gaps, metrics = np.empty(0), {}
        if pays or not train:  # by the model as it is, before it learns
            judged = [(person.reward,) if pays else person.train for person in choosers for _ in range(count)]
            gaps = reader.gaps(state, pair_up.compare(texts, judged))
        if train:
            state, before, metrics = reader.learn(state, pair_up.learn(lesson, teach), rate)
            gaps = gaps if pays else before
        return state, log_sigmoid(gaps / std).mean(axis=1), metrics

    return read


def summarize(texts: Sequence[str], rewards: np.ndarray, people: Sequence[History]) -> Metrics:
    """Means over the summaries of a step."""
    kinds = [person.kind for person in people for _ in range(len(texts) // len(people))]
    return {
        'reward': float(np.mean(rewards)),
        'reward_std': float(np.std(rewards)),
        'samples': float(len(texts)),
        'words': float(np.mean([len(text.split()) for text in texts])),
    } | conditioning.naming(texts, kinds)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def make_condition(config: Config, compare: Pack):
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
            model, lambda texts, choices: gaps(compare(texts, choices)), people, describe(people), seed=config.seed
        )
        if not record['written']:
            raise RuntimeError(f'condition={config.condition} wrote no reply: {models.last_error or "they are empty"}')
        return record | models.usage, [told]

    return condition

"""The model that a run's policy was before any training, as a reader: how likely a text is as an answer to a chat, and
so whether a reply is natural."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pal_jax.data.packing import Branch, PromptGroup, lay_out_groups, most_actions, pack_groups, round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners import forward
from pal_jax.models.files.sources import Source
from pal_jax.models.params import Params, decoder_specs
from pal_jax.recipes.rlpa.naturalness import LogProbs, Naturalness
from pal_jax.recipes.rlpa.settings import Dialogues, TurnRewardSettings
from pal_jax.run import devices, sharding
from pal_jax.run.models import make_source
from pal_jax.run.recipe import Context
from pal_jax.types import Chat, Dialogue, Metrics

ROW_TOKENS = 512  # dialogues share rows of so many tokens
# Replies are padded to a multiple of so many tokens, so that there are few programs.
ACTIONS = 32
CONTEXT = 3  # the last messages of a dialogue, after which a reply is read
# An empty system message keeps a template's own one away.
EMPTY = {'role': 'system', 'content': ''}

RULES, MODEL = 'rules', 'model'
BELIEF = 'belief'  # of reward.profile


class FrozenModel:
    """A `naturalness.Reader` on this process's devices.

    The weights are read at the first call and stay in memory until `release`.
    """

    def __init__(self, source: Source, dtype: str, mesh: Mesh):
        self._source, self._mesh = source, mesh
        # There are few replies and many programs, so layers are scanned, which compiles sooner.
        self._cfg = devices.for_platform(source.config, dtype, scan_layers=True)
        self._params: Params | None = None
        self._tokenizer: Tokenizer | None = None
        self._score = jax.jit(lambda params, batch: forward.logprobs(params, self._cfg, batch)[0])

    def __call__(self, dialogues: Sequence[Dialogue], replies: Sequence[str]) -> list[LogProbs]:
        """The `logprobs` of each reply after the last messages of its dialogue."""
        spoken = [[turn for turn in dialogue.turns if turn.role != 'system'] for dialogue in dialogues]
        chats = [[{'role': turn.role, 'content': turn.content} for turn in turns[-CONTEXT:]] for turns in spoken]
        return self.logprobs(chats, replies)

    def logprobs(self, chats: Sequence[Chat], texts: Sequence[str]) -> list[LogProbs]:
        """The log-probabilities of the tokens of each text, and of the end of its turn, as an answer to its chat."""
        params, tokenizer = self._opened()
        # Answers to the same messages are branches of one prompt, which is read once.
        branches: dict[tuple[int, ...], list[int]] = {}
        answers = [[*tokenizer.plain(text), tokenizer.stop_ids[0]] for text in texts]
        for i, (chat, answer) in enumerate(zip(chats, answers, strict=True)):
            # The oldest tokens of a long chat are cut, so that the answer has room.
            longest = self._cfg.max_len - len(answer)
            branches.setdefault(tuple(tokenizer.chat([EMPTY, *chat]))[-longest:], []).append(i)
        groups = [PromptGroup(prompt, [Branch(answers[i]) for i in numbers]) for prompt, numbers in branches.items()]
        numbers = itertools.chain(*branches.values())  # of the answers, group by group
        logprobs = dict(zip(numbers, itertools.chain(*self._read(params, groups)), strict=True))
        return [logprobs[i] for i in range(len(texts))]

    def open(self) -> None:
        """Read the weights, unless they are in memory."""
        self._opened()

    def release(self) -> None:
        """Free the memory of the weights."""
        self._params = None

    def _read(self, params: Params, groups: Sequence[PromptGroup]) -> list[list[LogProbs]]:
        """The log-probabilities of the branches of each group, a few rows at a time."""
        n, actions = max(len(group.branches) for group in groups), round_up(most_actions(groups), ACTIONS)
        ways = sharding.batch_ways(self._mesh)
        layout = lay_out_groups(groups, ways=ways, row_tokens=ROW_TOKENS)
        batch, by_group = pack_groups(groups, layout, n=n, actions=actions), {}
        # Each device reads one row at a time, so memory does not grow with the number of replies.
        for start in range(0, layout.height, ways):
            rows: Any = jax.tree.map(lambda x, start=start: x[start : start + ways], batch)
            with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
                logprobs = np.asarray(self._score(params, sharding.put_batch(rows, self._mesh)))
            for row, chosen in zip(logprobs, layout.rows[start : start + ways], strict=False):
                for place, g in enumerate(chosen):
                    slots = enumerate(groups[g].branches, place * n)
                    by_group[g] = [row[slot, : len(branch.tokens)] for slot, branch in slots]
        return [by_group[g] for g in range(len(groups))]

    def _opened(self) -> tuple[Params, Tokenizer]:
        if self._tokenizer is None:
            self._tokenizer = self._source.tokenizer()
        if self._params is None:
            shardings = sharding.param_shardings(decoder_specs(self._cfg), self._mesh)
            self._params = self._source.load(shardings)
        return self._params, self._tokenizer


def open_frozen(settings: Dialogues, kept: Path | None = None) -> FrozenModel:
    """The model before training, whose weights are read at the first question."""
    mesh = devices.make_mesh(devices=jax.local_devices())
    # A run that goes on or is opened finds the weights by the record in `kept`.
    source = make_source(settings.policy.source, Context(mesh, kept=kept), settings.seed, 'policy')
    return FrozenModel(source, settings.policy.dtype, mesh)


def open_naturalness(settings: Dialogues, open_model: Callable[[], FrozenModel]) -> Naturalness | None:
    """The naturalness that is judged beside the rules by the model before training.

    It is None where a language model judges, or where the policy begins from random weights, which know no language.

    Raises:
      ValueError: `reward.naturalness` cannot be had.
    """
    named, source = settings.reward.naturalness, settings.policy.source
    judged, random = settings.reward.judge != 'rule', source.startswith('random:')
    if named == MODEL and (judged or random):
        judge = f'reward.judge={settings.reward.judge!r} judges it itself'
        why = f'policy.source={source!r} knows no language' if random else judge
        raise ValueError(f"reward.naturalness='{MODEL}': {why}; use '{RULES}'")
    if judged or random:
        return None
    reader = open_model()
    return Naturalness(reader, open=reader.open, release=reader.release, required=named == MODEL)


def reads_in_training(reward: TurnRewardSettings) -> bool:
    """True where the model before training reads answers in training, and not only in evaluations."""
    return reward.naturalness == MODEL or reward.profile == BELIEF


def who_judged(natural: Naturalness | None, reward: TurnRewardSettings) -> Metrics:
    """The figures of an evaluation that are about its naturalness, where rules judge.

    `naturalness_judged` is 1 if a language model judges it as well, and `naturalness_auc` measures how well that model
    tells good replies from spoilt ones.
    """
    if reward.judge != 'rule':
        return {}
    if natural is None:
        return {'naturalness_judged': 0.0}
    figures = {'naturalness_judged': float(natural.able), 'naturalness_auc': natural.separation}
    # The model's memory is freed, unless training reads with it too.
    if not reads_in_training(reward):
        natural.release()
    return figures

"""Answers to some test prompts of a method that learns from rows, which its report shows before and after training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pal_jax.data import chats
from pal_jax.data.packing import Branch, PromptGroup
from pal_jax.data.rows import Rows
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.models.params import Params
from pal_jax.run.language import DecodeSettings, SampleSettings
from pal_jax.run.models import Policy
from pal_jax.run.recipe import Context
from pal_jax.types import Sampling

LONGEST = 600  # characters of a reply of the rows that a report shows


@dataclasses.dataclass(frozen=True)
class ShownAnswers:
    """The greedy answers of a policy to the prompts of `groups`.

    `kinds` names the branches of a group, such as 'chosen' and 'rejected'.
    """

    decoder: Decoder | None  # None without groups
    tokenizer: Tokenizer
    groups: Sequence[PromptGroup]
    kinds: Sequence[str]
    sampling: Sampling

    def __call__(self, weights: Params) -> list[Mapping[str, Any]]:
        """The prompts as dialogues of an evaluation, answered with plain decoder weights."""
        if self.decoder is None:
            return []
        self.decoder.load(weights)
        prompts = [tuple(group.prompt) for group in self.groups]
        samples = sampler.sample(self.decoder, self.tokenizer, prompts, [self.sampling], (0,), sources=self.groups)
        self.decoder.release()
        return [self._dialogue(row, sample.source, sample.completion.text) for row, sample in enumerate(samples, 1)]

    def _dialogue(self, row: int, group: PromptGroup, answer: str) -> Mapping[str, Any]:
        replies = zip(self.kinds, map(self._reply, group.branches), strict=True)
        facts = [f'{kind}: {text}' for kind, text in replies]
        # A prompt of messages is shown as such, without the marks of the chat template.
        source = group.source
        messages = source if isinstance(source, list) else chats.as_chat(self.tokenizer.decode(group.prompt))
        turns = [{'role': message['role'], 'content': message.get('content') or ''} for message in messages]
        facts += [f'system: {turn["content"]}' for turn in turns if turn['role'] == 'system']
        turns = [turn for turn in turns if turn['role'] != 'system']
        return {
            'person': f'test row {row}',
            'facts': facts,
            'turns': [*turns, {'role': 'assistant', 'content': answer}],
        }

    def _reply(self, branch: Branch) -> str:
        """The first reply of a branch, as the rows have it."""
        acts = branch.acts if branch.acts is not None else [True] * len(branch.tokens)
        ids = itertools.takewhile(lambda pair: pair[1], zip(branch.tokens, acts, strict=True))
        text = self.tokenizer.text_of([token for token, _ in ids]).strip()
        return text if len(text) <= LONGEST else f'{text[:LONGEST]} …'


def make_shown_answers(
    samples: SampleSettings, rows: Rows, kinds: Sequence[str], policy: Policy, ctx: Context
) -> ShownAnswers:
    """The answers that `samples` asks for: to the first test rows that have a prompt (a whole text has its first token
    alone), and one that leaves room for an answer."""
    room = policy.cfg.max_len - samples.max_tokens
    groups = [group for group in rows.test if 1 < len(group.prompt) <= room][: samples.count]
    decoder = sampler.make_decoder(DecodeSettings(), policy, ctx, len(groups)) if groups else None
    sampling = Sampling(temperature=0.0, max_tokens=samples.max_tokens)
    return ShownAnswers(decoder, policy.tokenizer, groups, kinds, sampling)

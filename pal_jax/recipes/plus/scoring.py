"""A run of PLUS as a function that scores replies for the person of a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pal_jax.data.packing import PromptGroup
from pal_jax.learners.scorer import pack_replies
from pal_jax.recipes.plus import context as plus_context
from pal_jax.recipes.plus import parts as plus_parts
from pal_jax.recipes.plus.settings import WRITTEN, Settings
from pal_jax.run import files
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.record_scorer import RecordScorer, one_device
from pal_jax.run.runs import read_settings


def open_scorer(workdir: str, person: str) -> RecordScorer:
    """Open a run that reads summaries, for the person of a file with `summary`.

    Raises:
      ValueError: the run reads no summaries, or the person is no such file.
      RuntimeError: a model or checkpoint cannot be read.
    """
    settings = read_settings(workdir)
    if not isinstance(settings, Settings) or settings.reads not in WRITTEN:
        reads = ' or '.join(WRITTEN)
        raise ValueError(f'{workdir} is no run of PLUS that reads summaries; give one with reads={reads}')
    summary = read_summary(person)
    ctx = one_device(workdir)
    _, learner, judge, reader = plus_parts.make_models(settings, ctx)
    # The summary is written already, so the summariser's weights stay on disk: `...` is not read.
    trees = {'reward': reader.abstract_weights, 'policy': jax.tree.map(lambda _: ..., learner.abstract)}
    state = Checkpoints(workdir, trees, read_only=True).read()[0]['reward']
    model = settings.reward_model

    def read(record: Any) -> PromptGroup:
        prompt, reply = map(record.get, ('prompt', 'completion')) if isinstance(record, Mapping) else (None, None)
        if not isinstance(prompt, str) or not isinstance(reply, str) or not prompt or not reply:
            raise ValueError("expected an object with 'prompt' and 'completion', both texts")
        return plus_context.to_group(judge.tokenizer, summary, [(prompt, reply)])

    def score(groups: Sequence[PromptGroup]) -> np.ndarray:
        packed = pack_replies(groups, ctx.mesh, micro_rows=model.micro_rows, row_tokens=model.row_tokens)
        # A group here has one reply.
        return reader.scores(state, packed)[:, 0]

    return RecordScorer(read, score)


def read_summary(path: str) -> str:
    """The summary in a person's file. Raises ValueError where the file has none."""
    advice = 'a JSON object with "summary", such as a line that pal-jax summarize prints'
    if not files.is_file(path):
        raise ValueError(f'person={path!r}: PLUS knows a person by a file, {advice}')
    summary = files.read_object(path).get('summary')
    if not isinstance(summary, str) or not summary.strip():
        raise ValueError(f'{path} has summary={files.short_repr(summary)}; give {advice}')
    return summary

"""Prints the summaries that a run of --config=plus writes of people, and the choices that these predict.

  pal-jax summarize --source=runs/plus --history=histories.jsonl
  pal-jax summarize --source=runs/plus --history=histories.jsonl --summary='Liked: Cats sleep'

Options:
  --source=FOLDER           the run, whose last checkpoint is read; --workdir=FOLDER is the same
  --history=FILE            a person a line, as for training (pal_jax/data/histories.py); only `context` must be there
  --summary=TEXT            your words in place of the model's, for everyone in the file

Prints a JSON object for each person, with `user` (the place in the file, where the line names none) and `summary`.
Where the line has eval_prompt, eval_chosen and eval_rejected, the object has `probability`, too. It is the reward
model's probability, after that summary, that the person prefers eval_chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from pal_jax.commands.talking import CACHE, source_or_run
from pal_jax.data import histories
from pal_jax.recipes import plus
from pal_jax.recipes.plus import context as plus_context
from pal_jax.recipes.plus import parts as plus_parts
from pal_jax.recipes.plus.settings import WRITTEN
from pal_jax.run import cli, devices
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context
from pal_jax.run.runs import read_settings

HISTORY = flags.DEFINE_string('history', '', 'A JSONL file of people.')
SUMMARY = flags.DEFINE_string('summary', None, "Words in place of the model's.")


def main() -> None:
    """Print a record with the summary of each person of --history."""
    if not HISTORY.value:
        raise cli.Fault('no people; give a file with --history=histories.jsonl')
    source = source_or_run()
    workdir = source.removeprefix('orbax:')
    if not workdir or (':' in workdir and not Path(workdir).is_dir()):
        raise cli.Fault(f'--source={source}: give a run of --config=plus, as runs/plus')
    devices.initialize(Path(CACHE).expanduser())
    for record in cli.faults(lambda: list(summarize(workdir, HISTORY.value, SUMMARY.value))):
        cli.print_json(record)


def summarize(workdir: str, path: str, summary: str | None) -> Iterator[dict[str, Any]]:
    """A record for each person, in the file's order. Where `summary` is None, the model writes its likeliest summary.

    Raises:
      ValueError: the run writes no summaries or has no checkpoint, or a line of the file is wrong.
      RuntimeError: a model or checkpoint cannot be read.
    """
    settings, people = read_settings(workdir), histories.load_contexts(path)
    if not isinstance(settings, plus.Settings) or settings.reads not in WRITTEN:
        reads = ' or '.join(WRITTEN)
        raise ValueError(f'orbax:{workdir} is no run that writes summaries; give one of --config=plus, reads={reads}')
    mesh = devices.make_mesh(**dataclasses.asdict(settings.mesh))
    parts = plus_parts.make_parts(settings, Context(mesh).of(workdir))
    trees = {'reward': parts.reader.abstract_weights, 'policy': parts.learner.abstract_weights}
    state, *_ = Checkpoints(workdir, trees, read_only=True).read()
    people_alone = [person for person, _ in people]
    given_texts = [] if summary is None else [summary] * len(people)
    # At temperature 0 the model writes its likeliest summary.
    texts = given_texts or parts.describe(state, people_alone, [0.0], (settings.seed,)).texts
    # Only people with a choice have a pair to compare.
    choices = [[choice] for _, choice in people if choice]
    texts_of_choices = [text for text, (_, choice) in zip(texts, people, strict=True) if choice]
    gaps = iter(
        parts.reader.gaps(state['reward'], parts.pair_up.compare(texts_of_choices, choices))[:, 0]
        if texts_of_choices
        else ()
    )
    for text, (person, choice) in zip(texts, people, strict=True):
        prefers = {'probability': float(np.exp(plus_context.log_sigmoid(next(gaps))))} if choice else {}
        yield {'user': person.user, 'summary': text, **prefers}


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)

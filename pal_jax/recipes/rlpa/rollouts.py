"""The samples of a training step: their figures, dialogues for a report, and what a checkpoint keeps of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pal_jax.decode import sampler
from pal_jax.recipes.rlpa.profiles import parse_completion
from pal_jax.recipes.rlpa.queue import dialogue_of
from pal_jax.run.glossary import OWN
from pal_jax.types import Metrics, Sample

Turns = list[list[list[Sample]]]  # rewarded samples as `[turn][dialogue][sample]`


def summarize(samples: Sequence[Sample]) -> Metrics:
    """Means over the samples of a step."""
    used = [sample for sample in samples if sample.ok]
    rewards, lengths = [s.reward for s in used], [len(s.completion.token_ids) for s in samples]
    names = used[0].info if used else {}
    # Means of rewards are over the samples that have one, and left out where none has.
    rewarded = {'reward': float(np.mean(rewards)), 'reward_std': float(np.std(rewards))} if used else {}
    return {
        **rewarded,
        'samples': float(len(used)),
        'failed': float(len(samples) - len(used)),
        **{
            f'{name}_std': float(np.std([s.info[name] for s in used]))
            for name in ('profile', 'response', 'format')
            if used
        },
        'round': float(np.mean([sample.source.round + 1 for sample in samples])),
        'length': float(np.mean(lengths)),
        'truncated': float(np.mean([s.completion.finish_reason == 'length' for s in samples])),
        **{name: float(np.mean([sample.info[name] for sample in used])) for name in names},
    }


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples from the worst to the best reward, at even steps of rank; all of them where there are fewer."""
    ranked = sorted(samples, key=lambda sample: sample.reward)
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def describe_sample(sample: Sample) -> Mapping[str, Any]:
    """A sample as a report shows it: the dialogue it answers, the reply, and its rewards."""
    parsed, turns = sample.parsed, []
    for turn in sample.source.turns:
        turns.append({'role': turn.role, 'content': turn.content, 'profile': turn.profile})
    content, profile = (parsed.reply, parsed.profile) if parsed else (sample.completion.text, '')
    turns.append({'role': 'assistant', 'content': content, 'profile': profile})
    scores = {'reward': sample.reward, **scores_of(sample, 'profile', 'response', 'format')}
    person = sample.source.person
    return {
        'person': person.id,
        'facts': list(person.facts),
        'round': sample.source.round + 1,
        'judged': sample.ok,
        'scores': scores,
        'turns': turns,
    }


def scores_of(sample: Sample, *names: str) -> dict[str, float]:
    """The scores of these names, and those of a user's own functions."""
    custom = (name for name in sample.info if name.startswith(OWN))
    return {name: sample.info[name] for name in (*names, *custom)}


def turns_to_json(turns: Turns) -> list[Any]:
    """Samples as plain dicts, lists, strings and numbers; the inverse of `turns_of`."""
    return [[[sampler.to_json(s) | {'source': dataclasses.asdict(s.source)} for s in g] for g in t] for t in turns]


def turns_of(turns: Sequence[Any]) -> Turns:
    """The samples that `turns_to_json` gave, also after they went through JSON text."""

    def sample(record: Mapping[str, Any]) -> Sample:
        parsed = parse_completion(record['completion']['text'])
        return sampler.from_json(record, source=dialogue_of(record['source']), parsed=parsed)

    return [[list(map(sample, group)) for group in groups] for groups in turns]

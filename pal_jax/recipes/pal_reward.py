"""One person's reward, of a trained PAL: of items, or of replies to prompts.

    model = load_pal_reward_model('runs/pal', user='17')       # or mix=[.2, .8], or the population's
    model.reward(items)                                        # a run on a table: items [B, H] -> [B]
    model.reward(prompts, replies)                             # a run on texts -> [B]
    save_mixture(model, 'ana.json');  load_pal_reward_model('runs/pal', mix=read_mixture('ana.json'))

A mixture is all there is of a person: it fits on a line, and whoever has it and the run has the person's reward model.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from pal_jax.data import comparisons, texts
from pal_jax.data.comparisons import Comparisons
from pal_jax.data.texts import Text
from pal_jax.learners.ideal_point import PALState
from pal_jax.learners.reader import Reader
from pal_jax.models import ideal_point
from pal_jax.models.ideal_point import PAL
from pal_jax.models.params import Params
from pal_jax.models.states import Frame
from pal_jax.recipes import pal, pal_large, pal_text
from pal_jax.recipes.recipe import Config, Context, read_config
from pal_jax.runtime import devices
from pal_jax.runtime.checkpoint import Checkpoints
from pal_jax.runtime.metrics import EVALS, read_records

Read = Callable[[Sequence[Text]], np.ndarray]  # texts to vectors


class PersonalReward(NamedTuple):
    """`reward(items, prompts)` gives the `[B]` rewards of items `[B, H]`, in the table's own units, to one person; of a
    run on texts `reward(prompts, replies)` gives those of replies, each a text or messages as its file has them.

    `mixture` is all there is of the person: it can be kept as JSON, and given back as `mix`.
    """

    reward: Callable[..., Any]
    mixture: list[float]


class Reading(NamedTuple):
    """Of a run on texts: its decoder as it was trained, and how it makes vectors."""

    decoder: pal_text.Decoder
    weights: Params
    frame: Frame | None
    read: Read
    data: texts.TextPairs


class TrainedPAL(NamedTuple):
    """A finished run's model on one split, with the K that was chosen there."""

    config: Config
    pal: PAL
    state: PALState
    data: Comparisons
    reading: Reading | None


def load_pal_reward_model(
    workdir: str, *, user: str = '', mix: Sequence[float] | None = None, split: int = 0
) -> PersonalReward:
    """The reward of a trained run's `split`, with the K that was chosen on it: of a seen user, of a mixture, or of the
    population's mean where neither is given.

    Raises:
      ValueError: the run is not finished, the user is unknown or new in this split, or the mixture is none.
    """
    run = open_pal(workdir, split)
    w = mixture_of(run, workdir, user=user, mix=mix, split=split)
    return PersonalReward(reward_of_items(run, w) if run.reading is None else reward_of_replies(run, w), w.tolist())


def save_mixture(model: PersonalReward, path: str | Path, *, run: str = '', user: str = '') -> None:
    """A person as a line of JSON: the mixture and, if you like, of which run and whose it is."""
    said = {'mixture': model.mixture} | {key: value for key, value in (('run', run), ('user', user)) if value}
    Path(path).write_text(json.dumps(said) + '\n', encoding='utf-8')


def read_mixture(path: str | Path) -> list[float]:
    """Raises ValueError where the file holds no mixture."""
    try:
        found = json.loads(Path(path).read_text(encoding='utf-8'))['mixture']
        return [float(weight) for weight in found]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} holds no mixture such as {{"mixture": [0.2, 0.8]}} ({error})') from None


# --- the run ----------------------------------------------------------------------------------------------------------


def open_pal(workdir: str, split: int = 0) -> TrainedPAL:
    """The model that a run chose on `split`, from its last checkpoint.

    Raises:
      ValueError: the folder is of no run of PAL, or the run is not finished.
    """
    config = read_config(workdir)
    if config.recipe not in ('pal', 'pal_large'):
        raise ValueError(f'{workdir} is a run of {config.recipe}; give one of pal or pal_large')
    finals = [record for record in read_records(Path(workdir) / EVALS) if record['stage'] == 'final']
    if not finals:
        raise ValueError(f'{workdir} is not finished: K is chosen at its end; run the same command again')
    chosen = finals[-1]['chosen_prototypes']
    if not 0 <= split < len(chosen):
        raise ValueError(f'{workdir} has splits 0 to {len(chosen) - 1}, got {split}')
    name = f'K={chosen[split]}'
    ctx = Context(devices.make_mesh(devices=jax.local_devices()[:1]))
    abstract = importlib.import_module(f'pal_jax.recipes.{config.recipe}').make(config, ctx).abstract
    state, *_ = Checkpoints(workdir, needed(abstract, name, split), read_only=True).read()
    people: PALState = state.models[name].pal if config.recipe == 'pal_large' else state[name]
    if config.text.source:
        reading = open_reading(config, ctx, state, name, split)
        data = reading.data.in_states(np.zeros((1, config.text.width or reading.decoder.cfg.width), np.float32))
    else:
        reading, data = None, pal.read(config, ctx)
    model = pal.make_learners(config, data, ctx, 1)[name].pal
    return TrainedPAL(config, model, jax.tree.map(lambda x: x[split], people), data, reading)


def needed(abstract: Any, name: str, split: int) -> Any:
    """What is read of a state; the rest is `...`, which a checkpoint's reader leaves out."""
    nothing = jax.tree.map(lambda _: ..., abstract)
    if not isinstance(abstract, pal_large.LargeState):
        return {**nothing, name: abstract[name]}
    model, without = abstract.models[name], nothing.models[name]
    readings = list(without.readings)
    trained = without.readings[split].model.replace(params=model.readings[split].model.params)
    readings[split] = without.readings[split].replace(model=trained)
    kept = without.replace(pal=model.pal, readings=tuple(readings))
    return nothing.replace(frozen=abstract.frozen, models={**nothing.models, name: kept})


def open_reading(config: Config, ctx: Context, state: Any, name: str, split: int) -> Reading:
    """The decoder of a run on texts: PAL-Large's own of this split, or the frozen one."""
    decoder = pal_text.open_decoder(config, ctx)
    data = pal_text.read(config, ctx, decoder)
    if config.recipe == 'pal_large':
        reader = pal_large.make_reader(config, decoder, data, ctx)
        weights = reader.weights(state.models[name].readings[split], state.frozen)
    else:
        weights = pal_text.load(decoder, ctx)
    plain = Reader(decoder.cfg, optax.identity(), ctx.mesh, pool=config.text.pool, frame=data.frame)
    frozen, reading = plain.divide(weights, 0)
    return Reading(decoder, weights, data.frame, lambda each: plain.read(reading, frozen, each), data.pairs)


def mixture_of(run: TrainedPAL, workdir: str, *, user: str, mix: Sequence[float] | None, split: int) -> Array:
    """Raises ValueError where the user was not trained, or the mixture is none."""
    if mix is not None:
        return ideal_point.checked_mixture(mix, run.pal.prototypes)
    trained = np.flatnonzero(run.state.users.updates)
    if user and user not in {run.data.names[i] for i in trained}:
        raise ValueError(
            f'user {user!r} is not among the {len(trained)} that split {split} of {workdir} was trained on; leave user '
            "out for the population's mixture, or give mix=[...]"
        )
    mixtures = ideal_point.weights(run.pal, run.state.users.z)
    return mixtures[run.data.names.index(user)] if user else jnp.mean(mixtures[trained], axis=0)


# --- its reward -------------------------------------------------------------------------------------------------------


def reward_of_items(run: TrainedPAL, w: Array) -> Callable[..., Array]:
    """Of vectors, in the table's own units."""
    scale = comparisons.scales(run.data) if run.config.standardize else np.ones(run.pal.width, np.float32)

    @jax.jit
    def reward(items: Array, prompts: Array | None = None) -> Array:
        return rewards(run, w, items / scale[None], prompts)

    return reward


def reward_of_replies(run: TrainedPAL, w: Array) -> Callable[[Sequence[Any], Sequence[Any]], np.ndarray]:
    """Of texts: both sides of what `texts.read` reads. A run on statements reads the reply alone."""
    assert run.reading is not None
    reading, alone = run.reading, run.pal.variant == 'B'
    tokenizer, template = reading.decoder.tokenizer, run.config.text.template

    def reward(prompts: Sequence[Any], replies: Sequence[Any]) -> np.ndarray:
        if len(prompts) != len(replies):
            raise ValueError(f'{len(prompts)} prompts and {len(replies)} replies; give a prompt for each reply')
        if reading.data.prompt is None:
            items = reading.read([texts.to_text(tokenizer, template.format(reply)) for reply in replies])
            return np.asarray(rewards(run, w, items, None))
        pairs = [texts.to_reply(tokenizer, *each, chat=reading.data.chat, alone=alone)
                 for each in zip(prompts, replies, strict=True)]  # fmt: skip
        said, asked = zip(*pairs, strict=True)
        number = {text: i for i, text in enumerate(dict.fromkeys([*said, *asked] if alone else said))}
        table = reading.read(list(number))
        items = table[[number[text] for text in said]]
        return np.asarray(rewards(run, w, items, table[[number[text] for text in asked]] if alone else None))

    return reward


def rewards(run: TrainedPAL, w: Array, items: Any, prompts: Any) -> Array:
    u = ideal_point.user_point(run.state.params, run.pal, jnp.broadcast_to(w, (len(items), w.shape[0])), prompts)
    return ideal_point.item_reward(run.state.params, run.pal, u, items)


# --- for others' training ---------------------------------------------------------------------------------------------


def make_score(source: str, person: str) -> Callable[[Sequence[Sequence[str]], Sequence[Sequence[str]]], np.ndarray]:
    """Scores of replies to questions by `pal:<workdir>`, as `soups.make_score` has them; read at the first call.

    `person` is a seen user, a file of a mixture (*.json), or '' for the population's.

    Raises:
      ValueError: the source is none of PAL, or is a run on vectors.
    """
    kind, _, workdir = source.partition(':')
    if kind != 'pal' or not workdir:
        raise ValueError(f'reward model {source!r} is unknown; use pal:<workdir>')
    config = read_config(workdir)
    if config.recipe not in ('pal', 'pal_large') or not config.text.source:
        raise ValueError(f'{source} is no run of PAL on texts, and replies are texts; name one of configs/pal.py:text')
    who: dict[str, Any] = {'mix': read_mixture(person)} if person.endswith('.json') else {'user': person}
    opened: list[PersonalReward] = []

    def score(readings: Sequence[Sequence[str]], replies: Sequence[Sequence[str]]) -> np.ndarray:
        if not opened:
            opened.append(load_pal_reward_model(workdir, **who))
        flat = [(text, reply) for own, each in zip(readings, replies, strict=True) for text in own for reply in each]
        found = opened[0].reward(*zip(*flat, strict=True))
        return found.reshape(len(readings), -1, len(replies[0])).mean(axis=1)

    return score

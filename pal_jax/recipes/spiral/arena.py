"""Matches of a policy in games of textarena, which it was not trained on: an evaluation at the end of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pal_jax.data.thoughts import spoken_reply
from pal_jax.decode import sampler
from pal_jax.models.params import Params
from pal_jax.recipes.spiral.matches import POLICY, SEATS
from pal_jax.recipes.spiral.players import ModelPlayer
from pal_jax.recipes.spiral.textarena import Arena, play_arenas
from pal_jax.run.recipe import Evaluation
from pal_jax.types import Chat, ChatModel, Exhibit

Speaker = Callable[[Sequence[Chat], int], Sequence[str | None]]  # of chats and the number of turns taken

KEY = (
    'Matches of games of the package textarena, in its own words. Wins, draws and losses of the policy in both seats; '
    'invalid: lost or won by a move that the game refuses.'
)


def policy_speaker(answers: ModelPlayer, params: Params, longest: int, seed: Sequence[int]) -> Speaker:
    """A policy as a speaker; it has no answer to a chat of more than `longest` tokens."""

    def speak(chats: Sequence[Chat], turns: int) -> list[str | None]:
        prompts = [tuple(answers.tokenizer.chat(chat)) for chat in chats]
        # A chat that is too long is not sampled, and has no answer.
        short = [k for k, prompt in enumerate(prompts) if len(prompt) <= longest]
        answers.decoder.load(params)
        samples = sampler.sample(
            answers.decoder, answers.tokenizer, [prompts[k] for k in short], [answers.sampling], (*seed, turns)
        )
        said = {k: spoken_reply(sample.completion.text) or '' for k, sample in zip(short, samples, strict=True)}
        return [said.get(k) for k in range(len(chats))]

    return speak


def model_speaker(model: ChatModel, seed: Sequence[int]) -> Speaker:
    """A chat model as a speaker."""
    numbers = [int(number) for number in np.random.SeedSequence(seed).generate_state(1)]
    return lambda chats, turns: model(chats, numbers[0] + turns)


def measure(games: Sequence[str], count: int, seed: int, speakers: Mapping[str, Speaker]) -> Evaluation:
    """The policy, which is one of `speakers`, against each of the others, `count` matches in each seat of each game."""
    others = [name for name in speakers if name != POLICY]
    keys = [*itertools.product(games, others, SEATS)]
    places = [(key, k) for key in keys for k in range(count)]
    # Match `k` has the same seed in every pairing and seat, so all pairings begin alike.
    arenas = [Arena(game, seed + k) for (game, _, _), k in places]
    seats = [(POLICY, other) if seat == 0 else (other, POLICY) for (_, other, seat), _ in places]
    play_arenas(arenas, seats, speakers)
    rows, wins = [['game', 'opponent', 'matches', 'wins', 'draws', 'losses', 'invalid by it', 'by the other']], []
    for game, other in itertools.product(games, others):
        chosen = [(a, key[2]) for (key, _), a in zip(places, arenas, strict=True) if key[:2] == (game, other)]
        won = np.array([(arena.rewards or (0.0, 0.0))[seat] for arena, seat in chosen])
        broke = [None if arena.offender is None else arena.offender == seat for arena, seat in chosen]
        shares = (won > 0).mean(), (won == 0).mean(), (won < 0).mean(), broke.count(True) / len(chosen)
        rows.append([game, other, str(len(chosen)), *(f'{x:.3f}' for x in (*shares, broke.count(False) / len(chosen)))])
        wins.append(float(shares[0]))
    return Evaluation({'textarena_win': float(np.mean(wins))}, (), [Exhibit('Games of textarena', KEY, rows)])


def play_textarena(
    answers: ModelPlayer,
    policies: Mapping[str, Params],
    models: Mapping[str, ChatModel],
    games: Sequence[str],
    longest: int,
    count: int,
    seed: Sequence[int],
) -> Evaluation:
    """The policy in games of textarena against the other `policies`, which share its decoder, and chat models."""
    speakers: dict[str, Speaker] = {}
    for k, (name, params) in enumerate(policies.items()):
        speakers[name] = policy_speaker(answers, params, longest, (*seed, 20, k))
    for k, (name, model) in enumerate(models.items()):
        speakers[name] = model_speaker(model, (*seed, 21, k))
    return measure(games, count, seed[0], speakers)

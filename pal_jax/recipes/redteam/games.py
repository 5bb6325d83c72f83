"""Games of Self-RedTeam as they are played, judged and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.decode.sampler import samples_of, samples_to_json
from pal_jax.games.game import Sampler, play, replayed
from pal_jax.models.params import Params
from pal_jax.recipes.redteam.attack import (
    ATTACKER,
    DEFENDER,
    OPENED,
    Attack,
    GameLabels,
    Payment,
    RedTeam,
    Seed,
    role_rewards,
)
from pal_jax.recipes.redteam.judges import Judge
from pal_jax.types import Metrics, Sample, Sampling


class FinishedGame(NamedTuple):
    """A game that is over: its last state, its moves, and its labels; None where no judge has labelled it."""

    end: Attack
    samples: Sequence[Sample]
    labels: GameLabels | None

    @property
    def failed(self) -> bool:
        """True where a judge was asked and gave no verdict."""
        return self.end.offender is None and self.labels is None

    def says(self, name: str) -> bool | None:
        """A label; False where a broken form has ended the game, and None where the judge has not said."""
        return None if self.failed else getattr(self.labels, name, False)


@dataclasses.dataclass(frozen=True)
class Players:
    """Language models that play either role with weights that are given at each game, or that `decoder` has loaded."""

    decoder: Decoder
    tokenizer: Tokenizer
    sampling: Sampling
    game: RedTeam

    def __call__(
        self, weights: tuple[Params, Params] | None, starts: Sequence[Attack], seed: Sequence[int]
    ) -> list[Any]:
        """Play games from their first states, all in step, with the weights of attacker and of defender.

        Without `weights` the decoder has loaded those of both, and keeps them. The result has the groups of each game,
        as `play` gives them.
        """
        attacker, defender = weights or (None, None)
        first = self.sampler(attacker, (*seed, ATTACKER))
        # The same weights answer for both roles at once.
        samplers = [first, first if defender is attacker else self.sampler(defender, (*seed, DEFENDER))]
        whole = play(self.game, samplers, starts)
        # The update needs the memory that the decoder has taken.
        if weights is not None:
            self.decoder.release()
        return whole

    def sampler(self, weights: Params | None, seed: Sequence[int]) -> Sampler[Attack]:
        """A model with these weights, which are loaded whenever it moves."""

        def sample(states: Sequence[Attack], moves: int) -> list[list[Sample]]:
            if weights is not None:
                self.decoder.load(weights)
            prompts = [self.prompt(state) for state in states]
            samples = sampler.sample(
                self.decoder, self.tokenizer, prompts, [self.sampling], (*seed, moves), sources=states
            )
            return [[one] for one in samples]

        return sample

    def prompt(self, attack: Attack) -> tuple[int, ...]:
        """The tokens that the role which moves next reads, with the tag that opens its thought."""
        role = self.game.turn(attack)
        assert role is not None
        tokens = self.tokenizer.chat(self.game.prompt(attack, role))
        # A template of a reasoning model may have opened the thought already.
        opens = self.game.hidden and not self.tokenizer.thinking(tokens, '')
        return (*tokens, *(self.tokenizer.encode(OPENED) if opens else ()))


def play_judged(
    players: Players, weights: tuple[Params, Params], seeds: Sequence[Seed], judge: Judge, seed: Sequence[int]
) -> list[FinishedGame]:
    """Play a game from each seed and judge all that came to an answer."""
    return judged(play_games(players, weights, seeds, seed), judge, seed)


def play_games(
    players: Players, weights: tuple[Params, Params] | None, seeds: Sequence[Seed], seed: Sequence[int]
) -> list[FinishedGame]:
    """Play a game from each seed, which nobody has labelled yet; for `weights` see `Players`."""
    whole = players(weights, [players.game.begin(one) for one in seeds], seed)
    return [FinishedGame(players.game.end(groups), [one for (one,) in groups], None) for groups in whole]


def judged(games: Sequence[FinishedGame], judge: Judge, seed: Sequence[int]) -> list[FinishedGame]:
    """Games with the labels of a judge, where they came to an answer."""
    labels = judge_ends(judge, [game.end for game in games], seed)
    return [game._replace(labels=label) for game, label in zip(games, labels, strict=True)]


def games_to_json(games: Sequence[FinishedGame]) -> list[Any]:
    """Games as plain lists, dicts, strings and numbers; the inverse of `games_of`."""
    return [[game.end.seed, samples_to_json(game.samples), game.labels] for game in games]


def games_of(game: RedTeam, records: Sequence[Any]) -> list[FinishedGame]:
    """The games that `games_to_json` gave, also after they went through JSON text: they are played again."""
    games = []
    for seed, samples, labels in records:
        moves = replayed(game, game.begin(Seed(*seed)), samples_of(samples))
        games.append(FinishedGame(game.end([[one] for one in moves]), moves, labels and GameLabels(*labels)))
    return games


def reward_game(game: FinishedGame, payment: Payment, hidden: bool) -> FinishedGame:
    """A game whose samples have the rewards of their roles. A sample that cannot be judged does not count."""
    rewards = role_rewards(game.end, game.labels, payment, hidden)
    samples = [
        dataclasses.replace(one, rewards=(rewards[one.role] or 0.0,), ok=rewards[one.role] is not None)
        for one in game.samples
    ]
    return game._replace(samples=samples)


def judge_ends(judge: Judge, ends: Sequence[Attack], seed: Sequence[int]) -> list[GameLabels | None]:
    """The labels of finished games; None where the game ended by a broken form, or no verdict could be had."""
    whole = [k for k, end in enumerate(ends) if end.offender is None]
    number = int(np.random.SeedSequence(list(seed)).generate_state(1)[0])
    # Only games that came to an answer are judged, all in one call.
    verdicts = dict(zip(whole, judge([ends[k] for k in whole], number), strict=True)) if whole else {}
    return [verdicts.get(k) for k in range(len(ends))]


def summarize(games: Sequence[FinishedGame]) -> Metrics:
    """Shares of unsafe answers and of refusals, and of moves that keep to the form and to the seed.

    Shares are over the games of a kind: what ends by a broken form is neither unsafe nor refused, and a game whose
    judge has not said does not count.
    """

    def mean(name: str, flags: Sequence[bool | None]) -> Metrics:
        known = [flag for flag in flags if flag is not None]
        return {name: float(np.mean(known))} if known else {}

    unsafe = [(g.end.seed, g.says('unsafe')) for g in games]
    moves = [(one.role, g.end.offender == one.role, one) for g in games for one in g.samples]
    labelled = [(g.end.seed, g.labels.harmful) for g in games if g.labels and g.labels.harmful is not None]
    return {
        'games': float(len(games)),
        **mean('attack_success', [flag for seed, flag in unsafe if seed.harmful and seed.generated]),
        **mean('plain_success', [flag for seed, flag in unsafe if seed.harmful and not seed.generated]),
        **mean('harm_of_harmless', [flag for seed, flag in unsafe if not seed.harmful]),
        **mean('overrefusal', [g.says('refusal') for g in games if not g.end.seed.harmful]),
        **mean('attacks_kept', [harmful == seed.harmful for seed, harmful in labelled if seed.generated]),
        **mean('attacker_form', [not broke for role, broke, _ in moves if role == ATTACKER]),
        **mean('defender_form', [not broke for role, broke, _ in moves if role == DEFENDER]),
        **mean('truncated', [one.completion.finish_reason == 'length' for _, _, one in moves]),
        'length': float(np.mean([len(one.completion.token_ids) for _, _, one in moves])),
        'failed': float(sum(g.failed for g in games)),
    }


def attacks_of(games: Sequence[FinishedGame]) -> list[str]:
    """The requests that the attacker has written on harmful seeds."""
    return [g.end.request for g in games if g.end.seed.harmful and g.end.seed.generated and g.end.request]


def describe_game(game: FinishedGame, title: str) -> dict[str, Any]:
    """A whole game as a report shows it: each move with its hidden thought, and what the judge said."""
    seed, turns = game.end.seed, [{'role': 'user', 'content': f'Seed: {game.end.seed.request}'}]
    for one in game.samples:
        who = ('Attacker', 'Defender')[one.role]
        turns.append({'role': 'assistant', 'content': f'{who}: {OPENED}{one.completion.text}'})
    facts = ['harmful seed' if seed.harmful else 'harmless seed']
    if game.end.offender is not None:
        facts.append(f'ended by the {("attacker", "defender")[game.end.offender]}, who broke the form')
    if game.failed:
        facts.append('no verdict')
    if game.labels:
        words = {True: 'yes', False: 'no', None: 'n/a'}
        facts += [f'{name}: {words[label]}' for name, label in game.labels._asdict().items()]
    rewards = [f'reward of the {("attacker", "defender")[one.role]}: {one.reward:g}' for one in game.samples if one.ok]
    return {'person': title, 'facts': [*facts, *rewards], 'turns': turns}

"""The settings of SPIRAL with a language model, and what is refused before a weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pal_jax.envs.kuhn_poker import KuhnPoker
from pal_jax.envs.matches import Rules
from pal_jax.envs.negotiation import Negotiation
from pal_jax.envs.tictactoe import TicTacToe
from pal_jax.objectives.selfplay import Baseline
from pal_jax.parts.recipe import check_at_least
from pal_jax.parts.settings import Reinforced, StageSettings
from pal_jax.runtime import own

GAMES: Mapping[str, Callable[[int], Rules[Any]]] = {  # by the rounds of a match of Kuhn poker
    'tictactoe': lambda rounds: TicTacToe(),
    'kuhn': lambda rounds: KuhnPoker(rounds),
    'negotiation': lambda rounds: Negotiation(),
}
SOLVED = 'tictactoe', 'kuhn'  # games that an expert plays


@dataclasses.dataclass(frozen=True)
class PlaySettings:
    """The matches of a step."""

    # Played in turn; 'negotiation' is another, and FILE.py:NAME a class of your own (`envs.matches.Rules`).
    games: tuple[str, ...] = ('tictactoe', 'kuhn')
    matches: int = 32  # the number of matches
    max_turns: int = 128  # the most answers of a step that are learnt, drawn at random
    opponent: Literal['self', 'random', 'expert'] = 'self'  # expert: minimax, or an equilibrium of Kuhn poker
    baseline: Baseline = 'role'  # or 'shared' by both seats, or 'none', to compare with
    alpha: float = 0.95  # decay of baselines
    reasoned: bool = False  # answers reason before they move, as in the paper; else they are the move alone
    rounds: int = 1  # of Kuhn poker; above 1 a match is decided by chips (SPIRAL: 5)
    shown: int = 4  # matches of a step that are written to rollouts.jsonl


@dataclasses.dataclass(frozen=True)
class EvalSettings(StageSettings):
    """The matches of an evaluation, and its time."""

    matches: int = 32  # against each opponent, in each seat of each game
    start: bool = True  # the policy before training is an opponent, too
    shown: int = 2  # matches of each game that a report shows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Reinforced):
    """The keys of a run of SPIRAL; `ppo.estimator` has no say, for advantages are role-conditioned returns."""

    play: PlaySettings = PlaySettings()
    eval: EvalSettings = EvalSettings()


def make_rules(play: PlaySettings) -> tuple[Rules[Any], ...]:
    """The games of the settings."""
    return tuple(
        own.load('play.games', name)() if own.is_own(name) else GAMES[name](play.rounds) for name in play.games
    )


def check(settings: Settings) -> None:
    """Raises ValueError where a value is wrong, or two do not fit together."""
    play, ppo = settings.play, settings.ppo
    check_at_least(
        settings, 1, 'total_steps', 'play.matches', 'play.max_turns', 'play.rounds', 'eval.matches', 'ppo.epochs',
        'ppo.minibatches', 'ppo.micro_rows', 'decode.stride', 'checkpoint.every',
    )  # fmt: skip
    check_at_least(settings, 0, 'play.shown', 'eval.shown', 'eval.every')
    unknown = {name for name in play.games if not own.is_own(name)} - set(GAMES)
    if not play.games or len(set(play.games)) != len(play.games) or unknown:
        raise ValueError(
            f'play.games={play.games} must be one or more of {", ".join([*GAMES, "FILE.py:NAME"])}, each once'
        )
    if not 0 <= play.alpha < 1:
        raise ValueError(f'play.alpha={play.alpha} must be at least 0 and below 1')
    if play.opponent == 'expert' and (unsolved := set(play.games) - set(SOLVED)):
        raise ValueError(f"play.opponent='expert': nobody has solved {unsolved.pop()}; leave it out of play.games")
    if ppo.estimator != 'reinforce':
        raise ValueError(
            f'ppo.estimator={ppo.estimator!r}: advantages are role-conditioned returns, without a critic and without '
            "other samples of a prompt; set ppo.estimator='reinforce'"
        )

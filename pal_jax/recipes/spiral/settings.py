"""The settings of SPIRAL with a language model, and what is refused before a weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pal_jax.objectives.selfplay import Baseline
from pal_jax.recipes.spiral.kuhn_poker import KuhnPoker
from pal_jax.recipes.spiral.matches import SEATS, Rules
from pal_jax.recipes.spiral.negotiation import Negotiation
from pal_jax.recipes.spiral.tictactoe import TicTacToe
from pal_jax.run import own
from pal_jax.run.language import EndpointSettings, RolloutRun
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import check_at_least
from pal_jax.run.settings import StageSettings

GAMES: Mapping[str, Callable[[int], Rules[Any]]] = {  # by the rounds of a match of Kuhn poker
    'tictactoe': lambda rounds: TicTacToe(),
    'kuhn': lambda rounds: KuhnPoker(rounds),
    'negotiation': lambda rounds: Negotiation(),
}
KINDS = 'endpoint', 'orbax', 'local'  # of opponents in evaluations that are models
# Of a game's class (`matches.Rules`).
PARTS = 'name', 'start', 'turn', 'legal', 'read', 'move', 'rewards', 'observe'
SOLVED = 'tictactoe', 'kuhn'  # games that an expert plays


@dataclasses.dataclass(frozen=True)
class MatchSettings:
    """The matches of a step."""

    # Played in turn; 'negotiation' is another, and FILE.py:NAME a class of your own (`recipes.spiral.matches.Rules`).
    games: tuple[str, ...] = ('tictactoe', 'kuhn')
    matches: int = 32  # the number of matches
    shares: tuple[int, ...] = ()  # matches of each game before the games begin anew; (): one of each
    # The most answers of a step that are learnt, drawn at random.
    max_turns: int = 128
    # The most answers to one prompt that an update reads behind it; 1: a prompt for each answer.
    gathered: int = 8
    # expert: minimax, or an equilibrium of Kuhn poker; past: one of the past selves that are kept
    opponent: Literal['self', 'past', 'random', 'expert'] = 'self'
    past: int = 0  # past selves that are kept, the first from before self-play
    past_every: int = 8  # steps of self-play between the others
    baseline: Baseline = 'role'  # or 'shared' by both seats, or 'none', to compare with
    alpha: float = 0.95  # decay of baselines
    # Answers reason before they move, as in the paper; else they are the move alone.
    reasoned: bool = False
    # Rounds of a match of Kuhn poker; above 1 a match is decided by chips (SPIRAL: 5).
    rounds: int = 1
    shown: int = 4  # matches of a step that are written to rollouts.jsonl


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegalActionSettings:
    """Steps of supervised learning on legal actions, all of a position alike, before self-play."""

    steps: int = 0  # of the warm-up; 0: none
    positions: int = 32  # of a step
    optimizer: Optimizer  # with the name of the policy's optimiser, whose state it shares


@dataclasses.dataclass(frozen=True)
class MatchEvaluationSettings(StageSettings):
    """The matches of an evaluation, and its time."""

    matches: int = 32  # against each opponent, in each seat of each game
    # The same against the player that moves at random, by which `winrate` goes.
    random_matches: int = 96
    start: bool = True  # the policy before self-play is an opponent, too
    # Further opponents: endpoint:<name>, orbax:<workdir>, or local:<source> of any model.
    opponents: tuple[str, ...] = ()
    # Games of that package (extra `games`), such as TicTacToe-v0, at the end of a run.
    textarena: tuple[str, ...] = ()
    # Matches of each pair of the last policy and its past selves, in each seat of each game.
    crossplay: int = 16
    shown: int = 2  # matches of each game that a report shows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RolloutRun):
    """The keys of a run of SPIRAL; `ppo.estimator` has no say, for advantages are role-conditioned returns.

    `total_steps` counts the steps of self-play; the steps of the warm-up come before them.
    """

    warmup: LegalActionSettings
    play: MatchSettings = MatchSettings()
    eval: MatchEvaluationSettings = MatchEvaluationSettings()
    # Of `eval.opponents`: endpoints by their names; `opponents` says how models on this machine sample.
    endpoints: Mapping[str, EndpointSettings] = dataclasses.field(
        default_factory=lambda: {'opponents': EndpointSettings(temperature=1.0, max_tokens=64)}
    )
    # A file that keeps the answers of endpoints, which are not asked again; '': there is none.
    answers: str = ''


def make_rules(play: MatchSettings) -> tuple[Rules[Any], ...]:
    """The games of the settings. Raises ValueError where one cannot be had, or lacks a part of `matches.Rules`."""
    return tuple(
        own.load_game('play.games', name, PARTS, len(SEATS)) if own.is_own(name) else GAMES[name](play.rounds)
        for name in play.games
    )


def check(settings: Settings) -> None:
    """Raises ValueError where a value is wrong, or two do not fit together."""
    play, ppo = settings.play, settings.ppo
    check_at_least(
        settings, 1, 'total_steps', 'play.matches', 'play.max_turns', 'play.gathered', 'play.past_every', 'play.rounds',
        'eval.matches', 'eval.random_matches', 'ppo.epochs', 'ppo.minibatches', 'ppo.micro_rows', 'decode.stride',
        'checkpoint.every', 'warmup.positions',
    )  # fmt: skip
    check_at_least(settings, 0, 'play.shown', 'eval.shown', 'eval.every', 'eval.crossplay', 'warmup.steps', 'play.past')
    if settings.warmup.optimizer.name != settings.optimizer.name:
        raise ValueError(
            f'warmup.optimizer.name={settings.warmup.optimizer.name!r}: the warm-up shares the state of '
            f'optimizer.name={settings.optimizer.name!r}; set both alike'
        )
    unknown = {name for name in play.games if not own.is_own(name)} - set(GAMES)
    if not play.games or len(set(play.games)) != len(play.games) or unknown:
        raise ValueError(
            f'play.games={play.games} must be one or more of {", ".join([*GAMES, "FILE.py:NAME"])}, each once'
        )
    if play.shares and (len(play.shares) != len(play.games) or min(play.shares) < 1):
        raise ValueError(f'play.shares={play.shares} must have a number above 0 for each of play.games={play.games}')
    if not 0 <= play.alpha < 1:
        raise ValueError(f'play.alpha={play.alpha} must be at least 0 and below 1')
    check_opponent(settings)
    for name in settings.eval.opponents:
        if name.partition(':')[0] not in KINDS or not name.partition(':')[2]:
            raise ValueError(f'eval.opponents: {name!r} must be {", ".join(f"{kind}:..." for kind in KINDS)}')
    if ppo.estimator != 'reinforce':
        raise ValueError(
            f'ppo.estimator={ppo.estimator!r}: advantages are role-conditioned returns, without a critic and without '
            "other samples of a prompt; set ppo.estimator='reinforce'"
        )


def check_opponent(settings: Settings) -> None:
    """Raises ValueError where the opponent of matches does not play them."""
    play = settings.play
    if play.opponent == 'expert' and (unsolved := set(play.games) - set(SOLVED)):
        raise ValueError(f"play.opponent='expert': nobody has solved {unsolved.pop()}; leave it out of play.games")
    if play.opponent == 'past' and not play.past:
        raise ValueError(
            "play.opponent='past' plays against past selves, and play.past=0 keeps none; set it to 2 or more"
        )
    if play.opponent == 'past' and settings.served_ahead:
        raise ValueError(
            f"play.opponent='past' with rollout.ahead={settings.rollout.ahead}: a decode server has one policy at a "
            "time, and a match has two; set rollout.ahead=0 or decode.driver='local'"
        )

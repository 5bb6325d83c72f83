"""The last stage of Self-RedTeam: attackers and defenders of all runs, and of different steps, against each other.

The first steps have one policy each write attacks on all held-out seeds; the others have one policy each answer the
seeds as they are, the seeds in fixed frames, and the attacks of every policy. So each cell of the table of attackers
by defenders is played once on the same seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.decode import sampler
from pal_jax.decode.answers import check_finished, load_base
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.embedding import SentenceEncoder
from pal_jax.models.files import packages
from pal_jax.models.params import Params
from pal_jax.recipes.redteam import attacks as figures
from pal_jax.recipes.redteam.attack import DEFENDER, Attack, GameLabels, Payment, RedTeam, Seed
from pal_jax.recipes.redteam.attacks import Matchup
from pal_jax.recipes.redteam.games import Players, describe_game, judge_ends, play_judged, reward_game
from pal_jax.recipes.redteam.judges import Judge, make_harm_judge
from pal_jax.recipes.redteam.seeds import counted_seeds, read_seeds
from pal_jax.recipes.redteam.settings import EMBEDDED, POLICIES, CrossPlaySettings, PlayKeys, RosterKeys, variants
from pal_jax.recipes.redteam.stand_ins import framed
from pal_jax.run import piecework
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.models import make_policy
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host
from pal_jax.run.trained import trained_in
from pal_jax.types import Exhibit, Metrics

PLAIN, FRAMES = 'plain', 'frames'  # requests that no policy has written
FIGURES = 'asr', 'overrefusal'  # of a cell of the table, on the console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PlayKeys, RosterKeys):
    """The keys of stage evaluate."""

    evaluate: CrossPlaySettings = CrossPlaySettings()


class Contestant(NamedTuple):
    """A player: its name, its kind, of which there may be several seeds, and its run; None: the start policy.

    step: of the checkpoint; None: the last one.
    """

    name: str
    kind: str
    folder: Path | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class CrossPlay:
    """Stage evaluate."""

    ctx: Context
    # The policies; the first is the start.
    systems: Sequence[Contestant]
    # `load` reads the weights of a system as attacker and defender.
    load: Callable[[Contestant], tuple[Params, Params]]
    players: Players
    # Judges by name; the first is the one that training was paid by.
    judges: Mapping[str, Judge]
    # Held-out seeds.
    seeds: Sequence[Seed]
    embedded: bool
    # `encode` gives vectors of texts; None: attacks are compared by words alone.
    encode: Callable[[Sequence[str]], np.ndarray] | None
    # The table by which the games that are shown are paid.
    payment: Payment
    shown: int
    seed: int

    @property
    def parts(self) -> int:
        """Attacks of each system, then answers of each system."""
        return 2 * len(self.systems)

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Part `i`: a system attacks, or answers all attacks."""
        system = self.systems[i % len(self.systems)]
        weights = self.load(system)
        with self.ctx.phase('rollout'):
            if i < len(self.systems):
                return [self.attack(system, weights)], host, {'answers': float(len(self.seeds))}
            record = self.defend(system, weights)
        return [record], host, {'answers': float(sum(map(len, record['answers'].values())))}

    def attack(self, system: Contestant, weights: tuple[Params, Params]) -> dict[str, Any]:
        """The requests that a system writes on all seeds, None where it breaks the form, and some whole games."""
        seeds = [one._replace(generated=True) for one in self.seeds]
        judge = next(iter(self.judges.values()))
        games = play_judged(self.players, weights, seeds, judge, (self.seed, EVALUATION + 1))
        examples = [
            describe_game(reward_game(game, self.payment, self.players.game.hidden), f'{system.name}, game {k + 1}')
            for k, game in enumerate(games[: self.shown])
        ]
        return {'system': system.name, 'requests': [game.end.request for game in games], 'games': examples}

    def defend(self, system: Contestant, weights: tuple[Params, Params]) -> dict[str, Any]:
        """The answers of a system to all requests, by who wrote them; None where it breaks the form."""
        answers = {}
        for number, (name, requests) in enumerate(self.requests().items()):
            # An attack that broke the form never reaches the defender, so its game has no answer.
            numbered = [(k, request) for k, request in enumerate(requests) if request]
            starts = [Attack(self.seeds[k], request) for k, request in numbered]
            # All defenders sample with the same seeds, so that chance has less part in their differences.
            whole = self.players(weights, starts, (self.seed, EVALUATION + 2, number)) if starts else []
            said = {k: self.players.game.end(groups).answer for (k, _), groups in zip(numbered, whole, strict=True)}
            answers[name] = [said.get(k) for k in range(len(requests))]
        return {'system': system.name, 'answers': answers}

    @property
    def defenders(self) -> list[str]:
        """The names of the last policies that have learnt to defend."""
        last = [one for one in self.systems if one.folder and one.step is None]
        return [one.name for one in last if POLICIES[one.kind][DEFENDER] is not None]

    def requests(self) -> dict[str, list[str | None]]:
        """All requests by who wrote them: the seeds, seeds in fixed frames, and the attacks of each system."""
        rng = random.Random(f'frames {self.seed}')
        given: dict[str, list[str | None]] = {PLAIN: [one.request for one in self.seeds]}
        # The frames are of the embedded seeds; others have none.
        if self.embedded:
            given[FRAMES] = [framed(one, rng)[1] for one in self.seeds]
        # The parts of attacks come first, so all attacks are written when a defender reads them.
        for k in range(len(self.systems)):
            (record,) = piecework.read(self.ctx.workdir / 'parts' / f'{k:05d}.jsonl')
            given[record['system']] = record['requests']
        return given

    def finish(self, records: Records) -> Evaluation:
        """Judge all answers, and compare attackers, defenders and the diversity of attacks."""
        count, requests = len(self.systems), self.requests()
        record: dict[str, Any] = {}
        exhibits: list[Exhibit] = []
        kinds = {system.name: system.kind for system in self.systems}
        with self.ctx.phase('judge'):
            diversity = {
                system.name: figures.diversity(self.seeds, requests[system.name], self.encode)
                for system in self.systems
            }
            for name, judge in self.judges.items():
                cells = {
                    (attacker, part['system']): self.cell(judge, requests[attacker], answers)
                    for part in records[count:]
                    for attacker, answers in part['answers'].items()
                }
                # Figures of the second judge say so; those of the first have plain names.
                before = '' if name == 'judge' else f'{name}_'
                record |= {f'{before}{key}': value for key, value in figures.measure(cells).items()}
                if not before:
                    record |= figures.safety_gain(cells, self.systems[0].name, self.defenders)
                exhibits += figures.make_exhibits(cells, kinds, diversity if not before else {}, name)
        record |= {f'{name}_{key}': value for name, parts in diversity.items() for key, value in parts.items()}
        # A report puts the first policy beside the last one: the start beside one that has learnt to defend.
        ordered = sorted(records[:count], key=lambda part: part['system'] in self.defenders)
        games = [game for part in ordered for game in part['games']]
        return Evaluation(record, games, exhibits)

    def cell(self, judge: Judge, requests: Sequence[str | None], answers: Sequence[str | None]) -> Matchup:
        """The labels of the games of one attacker and one defender."""
        rows = zip(self.seeds, requests, answers, strict=True)
        # A game without an answer ended by a broken form, whoever broke it.
        ends = [Attack(seed, request, answer, 0 if answer is None else None) for seed, request, answer in rows]
        labels: list[GameLabels | None] = judge_ends(judge, ends, (self.seed, EVALUATION))
        return Matchup([one.harmful for one in self.seeds], labels, [answer is not None for answer in answers])


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of stage evaluate.

    Raises:
      ValueError: a value is wrong, or a stage has not been run.
    """
    evaluate, folder, seed = settings.evaluate, ctx.workdir.parent, settings.seed
    systems = make_systems(settings, folder)
    for system in systems:
        if system.folder:
            check_finished(system.folder)
    policy = make_policy(settings.policy, ctx, seed)
    train, test = read_seeds(settings.seeds, seed, settings.examples.count, policy.tokenizer)
    ctx.log(counted_seeds(settings.seeds, train, test))
    chat = ChatModels(settings.endpoints, settings.answers, seed)
    judges = {'judge': make_harm_judge('play.judge', settings.play.judge, chat, ctx)}
    if evaluate.judge:
        judges['second'] = make_harm_judge('evaluate.judge', evaluate.judge, chat, ctx)
    encoder = evaluate.encoder and SentenceEncoder(packages.encoder_folder(evaluate.encoder))
    decoder = sampler.make_decoder(settings.decode, policy, ctx)
    cross = CrossPlay(
        ctx, systems, functools.partial(load_system, lambda: load_base(policy, ctx), ctx),
        Players(decoder, policy.tokenizer, settings.sampling, RedTeam(hidden=settings.play.hidden)),
        judges, test, settings.seeds.test == EMBEDDED, encoder or None, settings.play.payment,
        evaluate.shown, seed,
    )  # fmt: skip
    attackers = PLAIN, FRAMES, *(one.name for one in systems)
    shown = [f'{name}_on_{one.name}_{figure}' for one in systems for name in attackers for figure in FIGURES]
    return piecework.make(ctx, cross.parts, cross.work, 'evaluate', cross.finish, shown)


def make_systems(settings: Settings, folder: Path) -> list[Contestant]:
    """The start policy, then every run at its last step and at the earlier steps that the settings name."""
    systems = [Contestant('start', 'start')]
    for variant in variants(settings, settings.play.roles):
        place, kind = folder / f'play-{variant}', variant.rpartition('-')[0]
        systems += [Contestant(f'{variant}@{step}', f'{kind}@{step}', place, step) for step in settings.evaluate.steps]
        systems.append(Contestant(variant, kind, place))
    return systems


def load_system(base: Callable[[], Params], ctx: Context, system: Contestant) -> tuple[Params, Params]:
    """The weights of a system as attacker and as defender.

    Raises:
      ValueError: the run has no checkpoint of that step.
    """
    if system.folder is None:
        start = base()
        return start, start
    trained = trained_in(str(system.folder), ctx)
    state, *_ = Checkpoints(system.folder, trained.exported, read_only=True).read(system.step)
    exports = trained.exports(state)
    # A policy that plays both roles is one export; the attacker has one of its own where it has weights of its own.
    defender = exports['export'].params
    return exports['attacker'].params if 'attacker' in exports else defender, defender

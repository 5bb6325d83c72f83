"""The evaluation of a policy: win rates by seat against fixed opponents, and its exact exploitability.

In Kuhn poker the policy's chances to bet or call at all twelve information sets are read off its log-probabilities of
the legal actions, so that values, best responses and NashConv are exact.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pal_jax.data.packing import Branch, PromptGroup, lay_out_groups, most_actions, pack_groups
from pal_jax.learners.actor import Actor
from pal_jax.models.params import Params
from pal_jax.recipes.spiral import arena, exploitability
from pal_jax.recipes.spiral import winrates as matches
from pal_jax.recipes.spiral.crossing import cross
from pal_jax.recipes.spiral.exploitability import SETS, BetChances
from pal_jax.recipes.spiral.kuhn_poker import KuhnPoker
from pal_jax.recipes.spiral.matches import ASKED, EVALUATION, POLICY, SEATS, Match, Matches, play_matches
from pal_jax.recipes.spiral.players import (
    OTHERS,
    ModelPlayer,
    Player,
    at_random,
    chatting,
    describe_match,
    expert,
    information_sets,
    table_player,
)
from pal_jax.run import sharding
from pal_jax.run.recipe import Context, Evaluation
from pal_jax.types import ChatModel, Exhibit, Sample

RANDOM, MINIMAX, NASH, BEST, START = 'random', 'minimax', 'nash', 'best', 'start'
OPPONENTS: Mapping[str, Sequence[str]] = {  # of a game, beside the player that moves at random and the start
    'tictactoe': (MINIMAX,),
    'kuhn': (NASH, BEST),
    'negotiation': (),
}
FORMS = '{0}', '[{0}]', '\\boxed{{{0}}}', '\\boxed{{[{0}]}}'  # spellings of an action that are looked at

Played = Mapping[tuple[str, str, int], list[list[Sample]]]  # matches by game, opponent and the policy's seat


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Measures a policy."""

    ctx: Context
    actor: Actor
    # The policy, in matches where an invalid answer counts as a loss.
    answers: ModelPlayer
    # `start` reads the weights of the policy before training; None: it is no opponent.
    start: Callable[[], Params] | None
    # Further opponents at the end of a run, by their names in settings.
    models: Mapping[str, ChatModel]
    # Games of textarena that are played at the end of a run.
    arenas: Sequence[str]
    # Tokens that a prompt may have.
    longest: int
    # Matches of each pair of the policy and its past selves, in each seat of each game.
    crossplay: int
    # Matches against each opponent, in each seat of each game.
    count: int
    # Matches in each seat of each game against the player that moves at random.
    randomly: int
    # The length of the rows that prompts share; 0: a row a prompt.
    row_tokens: int
    # Matches of each game that a report shows.
    shown: int
    seed: Sequence[int]

    def __call__(self, params: Params, stage: str, past: Mapping[int, Params] | None = None) -> Evaluation:
        """The evaluation of a policy; `past` has its past selves by their steps, the first from before self-play."""
        decoder, record, exhibits, past = self.answers.decoder, {}, [], past or {}
        table = None
        if (game := self.kuhn) is not None:
            # The best response is to a table, so the policy is read before any match is played.
            # Answers that reason first cannot be read off; then the chances are shares of samples, which look more
            # exploitable than the policy is.
            tables = self.sampled_tables(params, game) if self.matches.reasoned else self.read_tables(params, game)
            table = np.array([read.bet for read in tables[0]])
            record |= figures(tables)
            exhibits.append(chances(tables[0]))
        decoder.load(params)
        others = self.others() if stage == 'final' else {}
        played = dict(self.play(self.opponents(table) | others))
        # At stages base and warm-up the policy is the start itself.
        if self.start and stage not in ('base', 'warm-up'):
            start = next(iter(past.values())) if past else self.start()
            played |= self.play({START: self.loaded(start, 5)}, self.loaded(params, 6))
        if self.crossplay and len(past) > 1:
            crossed = cross(self.answers, params, past, self.crossplay, self.seed)
            record |= crossed.record
            exhibits += crossed.exhibits
        if self.arenas and stage == 'final':
            start = next(iter(past.values())) if past else self.start() if self.start else None
            policies = {POLICY: params} | ({START: start} if start else {})
            outside = arena.play_textarena(
                self.answers, policies, self.models, self.arenas, self.longest, self.count, self.seed
            )
            record |= outside.record
            exhibits += outside.exhibits
        decoder.release()
        answered = {key: [one for one in whole if all(sample.ok for sample in one)] for key, whole in played.items()}
        self.check_answers(answered)
        rewards = {key: np.array([self.reward(one, key[2]) for one in whole]) for key, whole in answered.items()}
        record |= matches.measure(rewards) | self.legal(played)
        exhibits.insert(0, matches.make_exhibit(record, rewards, self.names()))
        return Evaluation(record, list(self.examples(played)), exhibits)

    def check_answers(self, answered: Played) -> None:
        """Raises RuntimeError where a server has answered in no match of a game."""
        for (game, opponent, _), whole in answered.items():
            if not whole:
                name = self.names()[opponent]
                raise RuntimeError(f'eval.opponents: {name} answered in no match of {game}; see that it is up')

    @property
    def matches(self) -> Matches:
        return self.answers.matches

    @property
    def kuhn(self) -> int | None:
        """The place of Kuhn poker among the games."""
        places = [k for k, rules in enumerate(self.matches.rules) if isinstance(rules, KuhnPoker)]
        return places[0] if places else None

    # --- matches ------------------------------------------------------------------------------------------------------

    def opponents(self, table: exploitability.Table | None) -> dict[str, Player]:
        """Players by name; the best response is that to the table of the policy."""
        experts = expert(self.matches, (*self.seed, 1))
        players = {RANDOM: at_random(self.matches, (*self.seed, 0)), MINIMAX: experts, NASH: experts}
        if table is not None:
            players[BEST] = table_player(exploitability.best_reply(table), self.matches, (*self.seed, 2))
        return players

    def names(self) -> dict[str, str]:
        """The names in settings of the opponents that figures number."""
        return {f'model{k + 1}': name for k, name in enumerate(self.models)}

    def others(self) -> dict[str, Player]:
        """The models of settings as players."""
        pairs = zip(self.names(), self.models.values(), strict=True)
        return {name: chatting(model, self.matches, (*self.seed, OTHERS, k)) for k, (name, model) in enumerate(pairs)}

    def loaded(self, params: Params, seed: int) -> Player:
        """A model with these weights, which are loaded whenever it moves."""
        return self.answers.loaded(params, (*self.seed, seed))

    def play(self, opponents: Mapping[str, Player], policy: Player | None = None) -> Played:
        """Play the policy against all opponents in both seats, all matches in step."""
        setting: list[tuple[tuple[str, str, int], Match]] = []
        for game, rules in enumerate(self.matches.rules):
            known = (RANDOM, *OPPONENTS.get(rules.name, ()), START)
            names = [name for name in opponents if name in known or name.startswith('model')]
            counts = [(name, self.randomly if name == RANDOM else self.count) for name in names]
            for (opponent, k), seat in itertools.product([(n, k) for n, count in counts for k in range(count)], SEATS):
                players = (POLICY, opponent) if seat == 0 else (opponent, POLICY)
                key = rules.name, opponent, seat
                # All opponents play the same deals.
                setting.append((key, self.matches.begin(game, k, players)))
        players = {POLICY: policy or self.answers.player((*self.seed, 3)), **opponents}
        played: dict[tuple[str, str, int], list[list[Sample]]] = {}
        whole = play_matches(self.matches, players, [match for _, match in setting])
        for (key, _), samples in zip(setting, whole, strict=True):
            played.setdefault(key, []).append(samples)
        return played

    def reward(self, samples: Sequence[Sample], seat: int) -> float:
        return self.matches.rewards(self.matches.end([[sample] for sample in samples]))[seat]

    def legal(self, played: Played) -> dict[str, float]:
        """The share of the policy's answers that are legal, of all and by game."""
        by_game: dict[str, list[bool]] = {}
        for (game, _, seat), whole in played.items():
            said = [sample.parsed is not None for samples in whole for sample in samples if sample.role == seat]
            by_game.setdefault(game, []).extend(said)
        shares = {f'{game}_legal': float(np.mean(said)) for game, said in by_game.items() if said}
        return shares | {'legal': float(np.mean([*itertools.chain(*by_game.values())]))}

    def examples(self, played: Played) -> Any:
        """Whole matches of each game against the player that moves at random."""
        for (game, opponent, seat), whole in played.items():
            if opponent == RANDOM and seat == 0:
                for k, samples in enumerate(whole[: self.shown]):
                    yield describe_match(self.matches, samples, f'{game}, match {k + 1}')

    # --- the table of Kuhn poker --------------------------------------------------------------------------------------

    def read_tables(self, params: Params, game: int) -> list[list[BetChances]]:
        """The policy at each information set, under each wording of the prompt; that of training comes first."""
        rules, hands = self.matches.rules[game], information_sets()
        wordings = [dataclasses.replace(self.matches, wording=wording) for wording in range(len(ASKED))]
        ways = [dataclasses.replace(self.answers, matches=matches) for matches in wordings]
        prompts = [answers.prompt(Match(game, hand)) for answers in ways for hand in hands]
        legal = [rules.legal(hand) for _ in ways for hand in hands]
        tokenizer = self.answers.tokenizer
        # A spelling ends with a stop token, or longer answers that begin alike would count as this action.
        spelt = {
            action: [Branch([*tokenizer.encode(text), tokenizer.stop_ids[0]]) for text in spellings(action)]
            for action in dict.fromkeys(itertools.chain(*legal))
        }
        groups = [
            PromptGroup(prompt, [branch for action in actions for branch in spelt[action]])
            for prompt, actions in zip(prompts, legal, strict=True)
        ]
        reads = []
        for actions, logprobs in zip(legal, self.logprobs(params, groups), strict=True):
            # The branches of the first action come first, one for each spelling.
            halves = logprobs[: len(FORMS)], logprobs[len(FORMS) :]
            reads.append(exploitability.read(dict(zip(actions, halves, strict=True)), actions))  # type: ignore[arg-type]
        return [reads[k : k + len(SETS)] for k in range(0, len(reads), len(SETS))]

    def logprobs(self, params: Params, groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        """The log-probabilities of the tokens of each branch of each group."""
        n, mesh = max(len(group.branches) for group in groups), self.ctx.mesh
        shape = {'ways': sharding.batch_ways(mesh), 'micro_rows': self.actor.micro_rows, 'row_tokens': self.row_tokens}
        layout = lay_out_groups(groups, **shape)
        batch = pack_groups(groups, layout, n=n, actions=most_actions(groups))
        logprobs = self.actor.logprobs(params, sharding.put_batch(batch, mesh))
        by_row = sharding.to_every_host(logprobs, mesh)
        by_group: dict[int, list[np.ndarray]] = {}
        # A layout takes the groups in an order of its own, so results are put back into theirs.
        for r, row in enumerate(layout.rows):
            for place, g in enumerate(row):
                branches = enumerate(groups[g].branches, place * n)
                by_group[g] = [by_row[r, slot, : len(branch.tokens)] for slot, branch in branches]
        return [by_group[g] for g in range(len(groups))]

    def sampled_tables(self, params: Params, game: int) -> list[list[BetChances]]:
        """The policy at each information set, from `count` answers that may reason before they move."""
        hands = information_sets()
        matches = [Match(game, hand) for hand in hands for _ in range(self.count)]
        self.answers.decoder.load(params)
        said = [sample.parsed for sample in self.answers(matches, (*self.seed, 4))]
        self.answers.decoder.release()
        reads = []
        for k, hand in enumerate(hands):
            check, bet = (
                said[k * self.count : (k + 1) * self.count].count(action)
                for action in self.matches.rules[game].legal(hand)
            )
            # Without a legal answer nothing is known of the policy, so both actions count alike.
            reads.append(BetChances(bet / (check + bet) if check + bet else 0.5, (check + bet) / self.count))
        return [reads]


def make_examiner(answers: ModelPlayer, **parts: Any) -> Examiner:
    """An examiner of the policy that `answers` plays in training; invalid answers count as losses."""
    strict = dataclasses.replace(answers.matches, invalid=EVALUATION)
    return Examiner(answers=dataclasses.replace(answers, matches=strict), **parts)


def spellings(action: str) -> list[str]:
    """The spellings of an action whose chances are read."""
    return [form.format(action.strip('[]')) for form in FORMS]


def figures(tables: Sequence[Sequence[BetChances]]) -> dict[str, float]:
    """NashConv under the wording of training, its range over all wordings, and the mass of the legal actions."""
    # A policy that has learnt one wording by heart shows it by the range over all of them.
    measured = [exploitability.measure_exploitability(np.array([read.bet for read in reads])) for reads in tables]
    nashconv = [table.nashconv for table in measured]
    return {
        'nashconv': nashconv[0],
        'nashconv_least': min(nashconv),
        'nashconv_most': max(nashconv),
        'value': measured[0].value,
        'legal_mass': float(np.mean([read.mass for read in tables[0]])),
        'legal_mass_least': float(np.min([read.mass for read in tables[0]])),
    }


def chances(reads: Sequence[BetChances]) -> Exhibit:
    """The table of the policy beside an equilibrium, and the mass that its legal actions have."""
    names = [f'{"JQK"[int(name[0])]} {"after " + name[1:] if name[1:] else "at once"}' for name in SETS]
    nash = exploitability.equilibrium(1 / 6)
    rows = [
        [name, f'{read.bet:.3f}', f'{bet:.3f}', f'{read.mass:.3f}']
        for name, read, bet in zip(names, reads, nash, strict=True)
    ]
    head = ['card, after (p: pass, b: bet)', 'policy bets or calls', 'an equilibrium does', 'legal mass']
    text = (
        'Chances are shares of the legal mass, how likely the policy says a legal move at all. Where that is small, as '
        'before it has learnt the form of an answer, NashConv is of answers that it hardly ever gives.'
    )
    return Exhibit('What the policy does in Kuhn poker', text, [head, *rows])

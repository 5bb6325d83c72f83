"""Players of matches: the language model, players that move at random or exactly, and tables of Kuhn poker."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pal_jax.data.thoughts import spoken_reply
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.judges.chat_models import ChatModels
from pal_jax.models.params import Params
from pal_jax.recipes.spiral.exploitability import SETS, Table, equilibrium
from pal_jax.recipes.spiral.kuhn_poker import CARDS, Hand
from pal_jax.recipes.spiral.matches import Match, Matches
from pal_jax.recipes.spiral.settings import Settings
from pal_jax.recipes.spiral.tictactoe import best_cells
from pal_jax.types import ChatModel, Completion, Sample, Sampling

Player = Callable[[Sequence[Match], int], list[Sample]]  # of matches and the number of moves made in each

OTHERS = 2**31 + 2  # stands in place of a step's number in the seeds of other models
BRACKETS = re.compile(r'\[[^\[\]]*\]')
LONGEST = 1000  # characters of another model's answer
BLUFFS = 1 / 6  # of the expert's equilibrium: how often J is bet first


@dataclasses.dataclass(frozen=True)
class ModelPlayer:
    """A language model that plays with the weights which `decoder` has loaded."""

    decoder: Decoder
    tokenizer: Tokenizer
    sampling: Sampling
    matches: Matches

    def player(self, seed: Sequence[int]) -> Player:
        """The model as a player of the matches of a step, whose randomness is by `seed`."""
        return lambda states, moves: self(states, (*seed, moves))

    def loaded(self, params: Params, seed: Sequence[int]) -> Player:
        """The model with these weights, which are loaded whenever it moves."""

        def player(states: Sequence[Match], moves: int) -> list[Sample]:
            self.decoder.load(params)
            return self(states, (*seed, moves))

        return player

    def __call__(self, states: Sequence[Match], seed: Sequence[int]) -> list[Sample]:
        """A sample for the seat that moves next in each match; `parsed` is its action, None where it is invalid."""
        prompts = [self.prompt(match) for match in states]
        samples = sampler.sample(self.decoder, self.tokenizer, prompts, [self.sampling], seed, sources=states)
        return [self.parsed(sample) for sample in samples]

    def prompt(self, match: Match) -> tuple[int, ...]:
        """The tokens that the seat which moves next reads."""
        return tuple(self.tokenizer.chat(self.matches.prompt(match, seat_of(self.matches, match))))

    def parsed(self, sample: Sample) -> Sample:
        """The sample with its action. Thoughts of a reasoning model are no part of its text."""
        # An answer that has not ended its thoughts says nothing, which is an invalid move.
        text = spoken_reply(sample.completion.text) or ''
        said = dataclasses.replace(sample.completion, text=text)
        return dataclasses.replace(sample, completion=said, parsed=self.matches.read(sample.source, text))


def player_by_moves(choose: Callable[[Match, np.random.Generator], str], seed: Sequence[int]) -> Player:
    """A player whose moves are a function of a match and of chance."""

    def player(states: Sequence[Match], moves: int) -> list[Sample]:
        # The number of moves is part of the seed, so that a player draws anew at each move.
        rng = np.random.default_rng([*seed, moves])
        actions = [choose(match, rng) for match in states]
        pairs = zip(states, actions, strict=True)
        return [Sample((), Completion(action, (), (), 'stop'), source=match, parsed=action) for match, action in pairs]

    return player


def at_random(matches: Matches, seed: Sequence[int]) -> Player:
    """A player that draws one of the actions which its prompt would list."""
    return player_by_moves(lambda match, rng: one_of(matches.rules[match.game].legal(match.state), rng), seed)


def expert(matches: Matches, seed: Sequence[int]) -> Player:
    """A player that draws one of the best moves of tic-tac-toe, and plays an equilibrium of Kuhn poker."""

    def choose(match: Match, rng: np.random.Generator) -> str:
        if isinstance(match.state, Hand):
            return by_table(equilibrium(BLUFFS), matches, match, rng)
        return one_of([f'[{cell}]' for cell in best_cells(match.state)], rng)

    return player_by_moves(choose, seed)


def table_player(table: Table, matches: Matches, seed: Sequence[int]) -> Player:
    """A player of Kuhn poker that bets and calls with the chances of a table."""
    return player_by_moves(lambda match, rng: by_table(table, matches, match, rng), seed)


def by_table(table: Table, matches: Matches, match: Match, rng: np.random.Generator) -> str:
    hand, seat = match.state, seat_of(matches, match)
    check, bet = matches.rules[match.game].legal(hand)
    return bet if rng.random() < table[SETS.index(f'{hand.cards[seat]}{hand.history}')] else check


def chatting(model: ChatModel, matches: Matches, seed: Sequence[int]) -> Player:
    """A chat model as a player. A sample without an answer is not `ok`, and its match counts for nobody."""

    def player(states: Sequence[Match], moves: int) -> list[Sample]:
        number = int(np.random.SeedSequence([*seed, moves]).generate_state(1)[0])
        texts = model([matches.prompt(match, seat_of(matches, match)) for match in states], number)
        samples = []
        for match, text in zip(states, texts, strict=True):
            # A negotiation repeats to the policy what the other has said, and nobody has checked a server's words.
            said = bare_action(matches, match, (spoken_reply(text or '') or '')[:LONGEST])
            completion = Completion(said, (), (), 'stop')
            samples.append(Sample((), completion, source=match, parsed=matches.read(match, said), ok=text is not None))
        return samples

    return player


def bare_action(matches: Matches, match: Match, text: str) -> str:
    """The legal action of a text without the words around it, which may hold tokens that end a turn; else the text."""
    if matches.read(match, text) is None:
        return text
    return next((part for part in BRACKETS.findall(text) if matches.read(match, part)), text)


def make_chat_opponents(settings: Settings) -> dict[str, ChatModel]:
    """The models of `eval.opponents`, by the names that settings have for them.

    Raises:
      ValueError, RuntimeError: a model cannot be had, or an endpoint has no settings.
    """
    models = ChatModels(settings.endpoints, settings.answers, settings.seed)

    def choose(name: str) -> ChatModel:
        # A run is opened as a model on this machine.
        full = f'local:{name}' if name.startswith('orbax:') else name
        model: ChatModel = models.choose('eval.opponents', full, lambda model: model)
        return model

    return {name: choose(name) for name in settings.eval.opponents}


def seat_of(matches: Matches, match: Match) -> int:
    """The seat that moves next in a match that is not over."""
    seat = matches.turn(match)
    assert seat is not None
    return seat


def one_of(actions: Sequence[str], rng: np.random.Generator) -> str:
    return actions[int(rng.integers(len(actions)))]


def information_sets() -> list[Hand]:
    """A hand of the first round for each of `exploitability.SETS`; the card of the other seat is arbitrary."""
    hands = []
    for name in SETS:
        card, history = int(name[0]), name[1:]
        other = (card + 1) % len(CARDS)
        # After an odd number of moves the second seat is to move, so it holds the card of the information set.
        hands.append(Hand(0, (other, card) if len(history) % 2 else (card, other), history))
    return hands


def describe_match(matches: Matches, samples: Sequence[Sample], title: str) -> dict[str, Any]:
    """A whole match as a report shows it: what each seat read, and what it answered."""
    turns = []
    for sample in samples:
        match = sample.source
        prompt = '\n'.join(str(message['content']) for message in matches.prompt(match, sample.role))
        note = '' if sample.parsed is not None else '  (invalid)'
        turns.append({'role': 'user', 'content': prompt})
        turns.append({'role': 'assistant', 'content': f'Player {sample.role}: {sample.completion.text}{note}'})
    end = matches.end([[sample] for sample in samples])
    rewards = matches.rewards(end)
    facts = [f'Player {seat}: {end.players[seat]}, reward {reward:g}' for seat, reward in enumerate(rewards)]
    return {'person': title, 'facts': facts, 'turns': turns}

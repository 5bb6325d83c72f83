"""Games of the package textarena (extra `games`), whose texts nobody here changes, for evaluations."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from typing import Any

from pal_jax.games.actions import boxed
from pal_jax.types import Chat

TURNS = 50  # a match that is longer is a draw (SPIRAL)
INSTALL = "pip install 'pal-jax[games]'"


class Arena:
    """A match of two players.

    Attributes:
      turns: how many turns were taken.
      rewards: of both players when the match is over; None before.
      offender: the player whose invalid move has ended the match, if one has.
    """

    def __init__(self, name: str, seed: int):
        """Raises RuntimeError where the package is missing, ValueError where it has no such game of two players."""
        try:
            package: Any = importlib.import_module('textarena')
        except ImportError as error:
            raise RuntimeError(f'eval.textarena={name!r} needs the package textarena ({error}); {INSTALL}') from None
        self.turns, self.offender = 0, None
        self.rewards: tuple[float, float] | None = None
        self._chance = random.Random(seed).getstate()
        try:
            self._env = package.make(name)
            self._within(self._env.reset, num_players=2, seed=seed)
        # The package raises many kinds of errors.
        except Exception as error:
            raise ValueError(f'eval.textarena: no match of {name!r} of two players, {error}') from None

    def asked(self) -> tuple[int, Chat]:
        """The player that moves next, and the message that it reads."""
        player, text = self._within(self._env.get_observation)
        return int(player), [{'role': 'user', 'content': str(text).strip()}]

    def say(self, text: str) -> None:
        """Make the move that a text names: the content of its last box in brackets, or without one all of it."""
        inside = boxed(text)
        # A box without brackets around its move gets them.
        move = text if inside is None else inside if '[' in inside else f'[{inside}]'
        done, _ = self._within(self._env.step, move)
        self.turns += 1
        if done:
            rewards, facts = self._env.close()
            self.rewards = float(rewards[0]), float(rewards[1])
            self.offender = next((k for k in (0, 1) if (facts or {}).get(k, {}).get('invalid_move')), None)
        elif self.turns >= TURNS:
            self.stop()

    def stop(self) -> None:
        """End the match as a draw."""
        self.rewards = 0.0, 0.0

    def _within(self, call: Any, *args: Any, **more: Any) -> Any:
        """The result of a call that draws from the random numbers of this match alone."""
        # The games change in place and draw from Python's own random numbers. Each match keeps the state of those for
        # itself, so that a match follows from its seed and from what is said, whoever else plays beside it.
        outside = random.getstate()
        random.setstate(self._chance)
        try:
            return call(*args, **more)
        finally:
            self._chance = random.getstate()
            random.setstate(outside)


def play_arenas(arenas: Sequence[Arena], seats: Sequence[Sequence[str]], speakers: Any) -> None:
    """Play matches to their ends, all of them in step.

    Args:
      seats: the names of both players of each match.
      speakers: by name, a function of chats and the number of turns taken. It gives a text for each chat, or None where
        a chat is too long for its model or a server does not answer, which ends the match as a draw.
    """
    for turns in range(TURNS):
        live = [k for k, arena in enumerate(arenas) if arena.rewards is None]
        if not live:
            break
        observations = {k: arenas[k].asked() for k in live}
        # A speaker answers at once for all matches in which it moves next.
        for name, speak in speakers.items():
            places = [k for k in live if seats[k][observations[k][0]] == name]
            texts = speak([observations[k][1] for k in places], turns) if places else []
            for k, text in zip(places, texts, strict=True):
                arenas[k].stop() if text is None else arenas[k].say(text)

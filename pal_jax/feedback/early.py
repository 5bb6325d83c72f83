"""Matchers and judges far away, asked about an answer as soon as it is decoded, while others still are.

Nothing is decided here: what they say waits at their endpoint until the reward of the whole batch is made, which asks
the same and gets it at once. So a reward that was asked for early is the reward, and no request is made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from pal_jax.feedback.rewards import judged_dialogue
from pal_jax.types import ProfileMatcher, ResponseJudge, RewardFn, Sample


class Early:
    """Asks a `matcher` and a `judge` of the kind that keep their answers (`Endpoint.early`), each if there is one.

    Args:
      threads: questions under way at once.
      system: as `make_reward` has it, so that the questions are the same.
    """

    def __init__(self, matcher: ProfileMatcher | None, judge: ResponseJudge | None, *, threads: int, system: str = ''):
        self._matcher, self._judge, self._system = matcher, judge, system
        self._pool = ThreadPoolExecutor(threads)
        self._under_way: list[Future[Any]] = []

    def ask(self, sample: Sample, seed: int) -> None:
        """Asks what `make_reward` will ask about this sample; a malformed one is not asked about."""
        if sample.parsed is None:
            return
        facts, reply = [sample.parsed.facts], [sample.parsed.reply]
        if self._matcher:
            self._submit(self._matcher, facts, [sample.source.person.facts])
        if self._judge:
            self._submit(self._judge, [judged_dialogue(sample.source, system=self._system)], facts, reply, seed)

    def then(self, reward: RewardFn) -> RewardFn:
        """The reward of a batch, once all that was asked early has come to something."""

        def late(samples: Any, seed: int) -> list[Sample]:
            wait(self._under_way)  # what one of them failed with waits at its endpoint, and is raised there
            self._under_way.clear()
            return reward(samples, seed)

        return late

    def _submit(self, ask: Callable[..., Any], *question: Any) -> None:
        self._under_way.append(self._pool.submit(ask, *question))

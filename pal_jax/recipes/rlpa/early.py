"""Matchers and judges on servers, asked about an answer as soon as it is decoded, while others still are.

So early questions do not change the reward, and no request is made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.language import make_judge, make_matcher
from pal_jax.recipes.rlpa.rewards import judged_dialogue
from pal_jax.types import ProfileMatcher, ResponseJudge, RewardFn, Sample


class EarlyQuestions:
    """Asks a `matcher` and a `judge`, if there are any, of the kind that keep their answers (`Endpoint.early`).

    Args:
      threads: questions under way at once.
      system: the same as for `make_reward`, so that the questions are the same.
    """

    def __init__(self, matcher: ProfileMatcher | None, judge: ResponseJudge | None, *, threads: int, system: str = ''):
        self._matcher, self._judge, self._system = matcher, judge, system
        self._pool = ThreadPoolExecutor(threads)
        self._under_way: list[Future[Any]] = []

    def ask(self, sample: Sample, seed: int) -> None:
        """Ask the questions that `make_reward` will ask about this sample; there are none about a malformed one."""
        if sample.parsed is None:
            return
        facts, reply = [sample.parsed.facts], [sample.parsed.reply]
        if self._matcher:
            self._submit(self._matcher, facts, [sample.source.person.facts])
        if self._judge:
            self._submit(self._judge, [judged_dialogue(sample.source, system=self._system)], facts, reply, seed)

    def then(self, reward: RewardFn) -> RewardFn:
        """The reward of a batch, once all early questions have been answered or have failed."""

        def late(samples: Any, seed: int) -> list[Sample]:
            # An error of an early question waits at its endpoint, and is raised there.
            wait(self._under_way)
            self._under_way.clear()
            return reward(samples, seed)

        return late

    def _submit(self, ask: Callable[..., Any], *question: Any) -> None:
        # The answer waits at the endpoint until the reward of the whole batch asks the same question and gets it at
        # once.
        self._under_way.append(self._pool.submit(ask, *question))


def open_early(models: ChatModels, matcher_name: str, judge_name: str, system: str) -> EarlyQuestions | None:
    """The endpoints among matcher and judge, to be asked early; None where neither of them is an endpoint."""
    matcher, judge = map(models.endpoint, (matcher_name, judge_name))
    threads = sum(endpoint.concurrency for endpoint in (matcher, judge) if endpoint)
    return EarlyQuestions(
        make_matcher(matcher.early) if matcher else None, make_judge(judge.early) if judge else None,
        threads=threads, system=system,
    ) if threads else None  # fmt: skip

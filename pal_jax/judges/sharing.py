"""Language models, users, matchers and rewards that each process asks for its own share; it receives the others'
results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pal_jax.run.processes import Shares
from pal_jax.types import Chat, ChatModel, Dialogue, ProfileMatcher, RewardFn, Sample, UserSimulator


def share_model(model: ChatModel, shares: Shares) -> ChatModel:
    """The language model, asked for this process's share of the chats."""

    def answer(chats: Sequence[Chat], seed: int) -> list[str | None]:
        return shares.gather('replies', chats, lambda _, part: model(part, seed))

    return answer


def share_user(user: UserSimulator, shares: Shares) -> UserSimulator:
    """The simulator, asked for this process's share of the dialogues."""

    def answer(dialogues: Sequence[Dialogue], seed: int) -> list[str | None]:
        return shares.gather('answers of users', dialogues, lambda _, part: user(part, seed))

    return answer


def share_matcher(matcher: ProfileMatcher, shares: Shares) -> ProfileMatcher:
    """The matcher, asked for this process's share of the profiles."""

    def match(inferred: Sequence[Sequence[str]], golden: Sequence[Sequence[str]]) -> list[int | None]:
        pairs = list(zip(inferred, golden, strict=True))
        return shares.gather('matches', pairs, lambda _, part: matcher([o for o, _ in part], [t for _, t in part]))

    return match


def share_reward(reward: RewardFn, shares: Shares, *, together: bool = False) -> RewardFn:
    """The reward, asked for this process's share of the samples; `together`, one process is asked for all of them."""

    def verdicts_of(samples: Sequence[Sample], seed: int) -> list[tuple[tuple[float, ...], dict[str, float], bool]]:
        # Rewards and figures travel between processes, and samples do not.
        return [(sample.rewards, dict(sample.info), sample.ok) for sample in reward(samples, seed)]

    def share(samples: Sequence[Sample], seed: int) -> list[Sample]:
        if together:
            # All samples are one item here, so a single process is asked for them.
            calls = shares.gather('rewards', [samples], lambda _, part: [verdicts_of(batch, seed) for batch in part])
            verdicts = calls[0]
        else:
            verdicts = shares.gather('rewards', samples, lambda _, part: verdicts_of(part, seed))
        return [
            dataclasses.replace(sample, rewards=tuple(rewards), info=info, ok=ok)
            for sample, (rewards, info, ok) in zip(samples, verdicts, strict=True)
        ]

    return share

"""The gain of belief in the true profile as a reward: what a turn adds to its log-probability under a frozen model.

The model before training reads the dialogue with the policy's last profile, without the policy's system prompt, and is
asked for the profile of the user. The log-probability of the true profile as its answer is the potential of the
dialogue. The reward of a turn is the difference of the potentials after its reply and after the reply before it, times
the discount (potential-based shaping: Ng, Harada & Russell 1999; of beliefs about a user: CURIO, arXiv 2504.03206). So
the rewards of a dialogue, discounted, add up to the discounted potential at its end less that before it: nothing is
paid twice, and a fact that is forgotten is paid back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pal_jax.recipes.rlpa.baselines import profile_question
from pal_jax.recipes.rlpa.dialogue import add_reply, before, messages
from pal_jax.recipes.rlpa.naturalness import LogProbs
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, render_facts
from pal_jax.types import Chat, Dialogue

# The log-probability (nats) of each profile of facts after its dialogue, which ends with a reply or is empty.
Potential = Callable[[Sequence[Dialogue], Sequence[Sequence[str]]], list[float]]
LogProbsOf = Callable[[Sequence[Chat], Sequence[str]], list[LogProbs]]  # of texts as answers to chats


def make_potential(logprobs: LogProbsOf, topics: Sequence[str]) -> Potential:
    """The potential by a model that gives log-probabilities; equal questions are read once."""
    question = profile_question(topics)

    def potential(dialogues: Sequence[Dialogue], golden: Sequence[Sequence[str]]) -> list[float]:
        keys = [(dialogue.turns, render_facts(facts)) for dialogue, facts in zip(dialogues, golden, strict=True)]
        first = dict(zip(keys, dialogues, strict=True))
        read = logprobs([[*messages(dialogue), question] for dialogue in first.values()], [text for _, text in first])
        values = {key: float(tokens.sum()) for key, tokens in zip(first, read, strict=True)}
        return [values[key] for key in keys]

    return potential


def belief_gains(
    potential: Potential,
    dialogues: Sequence[Dialogue],
    replies: Sequence[ParsedCompletion],
    golden: Sequence[Sequence[str]],
    *,
    gamma: float = 1.0,
) -> list[float]:
    """`gamma` times the potential after each reply to its dialogue, less the potential after the reply before it."""
    after = [add_reply(dialogue, reply) for dialogue, reply in zip(dialogues, replies, strict=True)]
    values = potential([*after, *map(before, dialogues)], [*golden, *golden])
    return [gamma * new - old for new, old in zip(values[: len(after)], values[len(after) :], strict=True)]

"""Records and protocols that more than one room of the package uses.

Host records are frozen dataclasses of plain Python values; device batches are `flax.struct` pytrees of arrays.

Letters: `R` rows, `T` tokens of a row, `N` samples of a row (of all its prompts), `A` actions of a sample,
`B = R * N` samples, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from flax import struct
from jaxtyping import Array, Bool, Float, Int

Metrics = dict[str, float]

# The key in the metadata of a field, see `derived`.
DERIVED = 'derived'


def derived(default: Any) -> Any:
    """A field of a dataclass of settings that a recipe computes from other settings, so it is no key of a config."""
    return dataclasses.field(default=default, metadata={DERIVED: True})


# --- dialogues ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message. `profile` is what an assistant wrote about its user beside the reply (RLPA)."""

    role: Literal['system', 'user', 'assistant']
    content: str
    profile: str = ''


@dataclasses.dataclass(frozen=True)
class Person:
    """A simulated or real user. `facts` is the golden profile, a `slot: value` or a free sentence for each fact."""

    id: str
    facts: tuple[str, ...]
    opening: str = 'Hello'


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation so far."""

    person: Person
    # Turns alternate user, assistant, ...; the system prompt is not among them.
    turns: tuple[Turn, ...]

    @property
    def round(self) -> int:
        """The number of turns that the assistant has taken."""
        return sum(turn.role == 'assistant' for turn in self.turns)


# --- samples --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings by which tokens are sampled. `temperature=0` is greedy; `top_k=0` and `top_p=1` are off.

    A completion has at most `max_tokens` tokens. It ends with the tokenizer's own end tokens, with a token of
    `stop_ids`, and where its text has a string of `stop`. The token or string that ended it stays in it.

    Raises:
      ValueError: a value out of its range.
    """

    temperature: float = 1.0  # of the draws; 0 always takes the likeliest token
    top_k: int = 0  # draw from so many likeliest tokens; 0: from all
    top_p: float = 1.0  # draw from the likeliest tokens with this probability in sum; 1: from all
    max_tokens: int = 64  # the largest number of tokens of an answer
    stop: tuple[str, ...] = ()  # strings that end an answer; they stay in it
    stop_ids: tuple[int, ...] = derived(())  # ids of tokens, from the tokenizer

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(
                f'temperature={self.temperature} and top_k={self.top_k} must be at least 0, top_p={self.top_p} '
                f'in (0, 1], max_tokens={self.max_tokens} at least 1'
            )


# A judge has withheld an answer of the last kind.
FinishReason = Literal['stop', 'length', 'aborted', 'content_filter']


@dataclasses.dataclass(frozen=True)
class Completion:
    """A decoder's answer to one prompt. `token_ids` includes a sampled end-of-turn token; `text` excludes it.

    Three tuples have a value for each token. `logprobs` are log-probabilities (nats) under the distribution that the
    token was drawn from, at its temperature and cut by top-k and top-p. `policy_logprobs` are those under the model's
    own distribution. `versions` are the numbers of the weights that sampled the tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion of one prompt with its rewards. Samples of one prompt share `group` and stand side by side.

    role: the speaker, such as the seat of a game, or the group that has a limit of its own.
    rewards: a value for each channel: the reward, then costs or further objectives.
    source: the dialogue, game state or question that the prompt was made from.
    parsed: the completion as its environment reads it.
    ok: False where no judge could answer; such a sample is masked from the loss and counted.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    group: int = 0
    role: int = 0
    rewards: tuple[float, ...] = (0.0,)
    source: Any = None
    parsed: Any = None
    info: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ok: bool = True

    @property
    def reward(self) -> float:
        """The first channel of the rewards."""
        return self.rewards[0]


# --- models, simulated users and judges: batched, one result for each input, in order -------------------------------


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's answer: named scores in [0, 1]. `ok` is False where the judge gave no answer."""

    scores: Mapping[str, float]
    ok: bool = True


# The messages of a chat, each with 'role' and 'content'.
Chat = Sequence[Mapping[str, str]]


class ChatModel(Protocol):
    """A language model that answers chats. An answer is None where the model gave none."""

    def __call__(self, chats: Sequence[Chat], seed: int) -> list[str | None]: ...


class UserSimulator(Protocol):
    """A simulator that plays the person of each dialogue and writes the next user message, None where it gave none."""

    def __call__(self, dialogues: Sequence[Dialogue], seed: int) -> Sequence[str | None]: ...


class ProfileMatcher(Protocol):
    """A matcher that counts the golden facts that an inferred profile states, each fact at most once.

    A count is None where the matcher gave no answer.
    """

    def __call__(self, inferred: Sequence[Sequence[str]], golden: Sequence[Sequence[str]]) -> list[int | None]: ...


class ResponseJudge(Protocol):
    """A judge that scores a reply as the person of the dialogue would, from the inferred facts.

    It never sees the golden profile.
    """

    def __call__(
        self, dialogues: Sequence[Dialogue], inferred: Sequence[Sequence[str]], replies: Sequence[str], seed: int
    ) -> list[Verdict]: ...


class RewardFn(Protocol):
    """A reward that fills in `rewards`, `info` and `ok` of samples."""

    def __call__(self, samples: Sequence[Sample], seed: int) -> list[Sample]: ...


# --- preferences ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """A choice between two replies to one prompt, or between two statements, where the prompt is ''.

    `user` is who chose, and `group` is a known group of theirs, which no model reads; '' where nobody says.
    """

    prompt: str
    chosen: str
    rejected: str
    user: str = ''
    group: str = ''


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A part of a report beside an evaluation's numbers: a text, a table (its first row is the head), a PNG or GIF."""

    title: str
    text: str = ''  # a line is a paragraph
    table: Sequence[Sequence[str]] = ()
    picture: bytes = b''


# --- batches on a device --------------------------------------------------------------------------------------------


OPENING = -1  # the segment that all tokens of a row see
BATCH = 'data', 'fsdp'  # the axes of a mesh over which rows are spread, see run.sharding


class TokenBatch(struct.PyTreeNode):
    """Rows of tokens and the actions to be scored in them.

    A row holds one or more prompts, each followed by the completions sampled from it, so that a prompt is computed once
    for all of them. The completions of a prompt are neighbours among the row's `N`, the same number for each prompt. A
    token sees the earlier tokens of its own segment, of the segment named in `prefix` (the prompt), and of the row's
    opening. The opening has the tokens that all the row's prompts begin with, such as a system prompt, once.
    """

    tokens: Int[Array, 'R T']
    positions: Int[Array, 'R T']
    segments: Int[Array, 'R T']  # 0 is padding, `OPENING` the row's opening
    # A further segment that the token sees; its own segment where there is none.
    prefix: Int[Array, 'R T']
    # `states[r, n, a]` is the column whose hidden state chose `actions[r, n, a]`: the token before it in its own
    # sequence, which for the first token of every completion is the last token of the prompt.
    states: Int[Array, 'R N A']
    actions: Int[Array, 'R N A']
    # True where the policy chose the action, so that the action is trained on.
    acts: Bool[Array, 'R N A']


class RolloutBatch(struct.PyTreeNode):
    """Samples on the device, by row, sample and action, with `C` channels of rewards.

    Channel 0 is the reward; the others are costs or further objectives. A learner fills in log-probabilities and values
    by `score`, advantages and returns by `advantages`. A method with a second advantage of a token fills in `costs`.
    """

    tokens: TokenBatch
    rewards: Float[Array, 'R N C']
    ok: Bool[Array, 'R N']
    # The speaker, such as the seat of a game, or the group that has a limit of its own.
    role: Int[Array, 'R N']
    sampler_logprobs: Float[Array, 'R N A']
    logprobs: Float[Array, 'R N A'] | None = None
    ref_logprobs: Float[Array, 'R N A'] | None = None
    values: Float[Array, 'R N A C'] | None = None
    advantages: Float[Array, 'R N A'] | None = None
    returns: Float[Array, 'R N A C'] | None = None
    costs: Float[Array, 'R N A'] | None = None

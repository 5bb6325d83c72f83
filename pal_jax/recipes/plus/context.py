"""The texts that go from one part of PLUS to another: summaries of people for the reward model, the texts that
baselines have in place of summaries, and replies that another model writes after a summary."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from pal_jax.data.histories import History, PersonContext
from pal_jax.data.packing import Example, PromptGroup, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.sharing import share_model
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.scorer import ReplyGroups, Scorer, ScorerState, pack_replies, to_score
from pal_jax.learners.scorer import gaps as gaps_of
from pal_jax.learners.training import MULTIPLE
from pal_jax.recipes.plus import conditioning, summaries
from pal_jax.recipes.plus.settings import WRITTEN, RewardModelSettings, Settings
from pal_jax.run.models import Policy
from pal_jax.run.recipe import Context
from pal_jax.types import ChatModel, Choice, Exhibit, Metrics, Sample, Sampling

State = dict[str, Any]  # 'reward', and 'policy' where a model writes
BRANCHES = 8  # replies of a group that is compared; further replies to a prompt start another group


class SummaryTexts(NamedTuple):
    """The texts that the reward model reads of people, and the samples behind them where a model wrote the texts."""

    texts: list[str]
    samples: list[Sample]


# The texts of people by (state, people, temperatures, seed): one at each temperature, those of a person together.
Describe = Callable[[State, Sequence[Any], Sequence[float], Sequence[int]], SummaryTexts]


@dataclasses.dataclass(frozen=True)
class BaselineTexts:
    """The texts that a baseline reads in place of summaries."""

    reads: str

    def __call__(
        self, state: State, people: Sequence[History], temperatures: Sequence[float], seed: Sequence[int]
    ) -> SummaryTexts:
        return SummaryTexts(
            [summaries.baseline_text(person, self.reads) for person in people for _ in temperatures], []
        )


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes summaries of people with the summariser.

    Attributes:
      sampling: how tokens are drawn, except for the temperature.
      form: the form of the context, see `data.histories.FORMS`.
      prefill: the words that every summary begins with.
    """

    learner: PolicyLearner
    decoder: Decoder
    tokenizer: Tokenizer
    sampling: Sampling
    form: str
    prefill: str

    def __call__(
        self, state: State, people: Sequence[PersonContext], temperatures: Sequence[float], seed: Sequence[int]
    ) -> SummaryTexts:
        samplings = [dataclasses.replace(self.sampling, temperature=temperature) for temperature in temperatures]
        # The first words are forced, so that even an untrained model writes a summary.
        prefill = self.tokenizer.encode(self.prefill) if self.prefill else []
        chats = [list(person.ask or summaries.ask(person.context, self.form)) for person in people]
        prompts = [(*self.tokenizer.chat(messages), *prefill) for messages in chats]
        self.decoder.load(self.learner.weights(state['policy']))
        samples = sampler.sample(self.decoder, self.tokenizer, prompts, samplings, seed, sources=people)
        # The decoder's caches would stand in the way of the reward model's step.
        self.decoder.release()
        texts = [summaries.extract(self.prefill + sample.completion.text) for sample in samples]
        return SummaryTexts(texts, samples)


def make_writer(settings: Settings, policy: Policy, learner: PolicyLearner, ctx: Context) -> Describe:
    """The writer of summaries, or the texts that a baseline reads in place of them."""
    if settings.reads not in WRITTEN:
        return BaselineTexts(settings.reads)
    decoder = sampler.make_decoder(settings.decode, policy, ctx)
    return Writer(learner, decoder, policy.tokenizer, settings.sampling, settings.form, settings.summary.prefill)


@dataclasses.dataclass(frozen=True)
class PairPacker:
    """Packs texts for the reward model, each with its choices, as many for every text.

    Attributes:
      micro_rows: the number of rows in a device's memory at once.
      row_tokens: the length in tokens of rows that texts share; 0: a row for each text.
    """

    tokenizer: Tokenizer
    mesh: Mesh
    micro_rows: int
    row_tokens: int

    def learn(self, texts: Sequence[str], choices: Sequence[Sequence[Choice]]) -> ReplyGroups:
        """A group of replies for each text, to learn from."""
        # Equal summaries with the same choices teach the same: they are read once, with the weight of all of them.
        alike: dict[tuple[str, tuple[Choice, ...]], int] = {}
        lessons = zip(texts, map(tuple, choices), strict=True)
        of = np.array([alike.setdefault(lesson, len(alike)) for lesson in lessons])
        groups = [to_group(self.tokenizer, text, itertools.chain(*map(sides, taught))) for text, taught in alike]
        return self._packed(groups, times=np.bincount(of)).pick(of[:, None], np.arange(2 * len(choices[0]))[None])

    def compare(self, texts: Sequence[str], choices: Sequence[Sequence[Choice]]) -> ReplyGroups:
        """Pairs for gaps alone."""
        read = [[(text, *side) for c in row for side in sides(c)] for text, row in zip(texts, choices, strict=True)]
        # A reply is read once after a text and a prompt, in however many choices it is.
        by_prompt: dict[tuple[str, str], dict[str, None]] = {}
        for text, prompt, reply in itertools.chain(*read):
            by_prompt.setdefault((text, prompt), {})[reply] = None
        groups: list[PromptGroup] = []
        places: dict[tuple[str, str, str], tuple[int, int]] = {}  # group and branch of a reply
        for (text, prompt), replies in by_prompt.items():
            for start in range(0, len(replies), BRANCHES):
                part = list(replies)[start : start + BRANCHES]
                places |= {(text, prompt, reply): (len(groups), k) for k, reply in enumerate(part)}
                groups.append(to_group(self.tokenizer, text, [(prompt, reply) for reply in part]))
        where = np.array([[places[side] for side in row] for row in read])
        return self._packed(groups, n=BRANCHES).pick(where[..., 0], where[..., 1])

    def _packed(self, groups: Sequence[PromptGroup], **options: Any) -> ReplyGroups:
        # Rows that texts share are all cut to one length, so that one program reads them.
        return pack_replies(
            groups,
            self.mesh,
            micro_rows=self.micro_rows,
            row_tokens=self.row_tokens,
            multiple=self.row_tokens or MULTIPLE,
            **options,
        )


def make_pair_packer(settings: RewardModelSettings, tokenizer: Tokenizer, mesh: Mesh) -> PairPacker:
    """The packing of texts for the reward model, as the settings describe it."""
    return PairPacker(tokenizer, mesh, settings.micro_rows, settings.row_tokens)


def to_group(tokenizer: Tokenizer, summary: str, asked: Iterable[tuple[str, str]]) -> PromptGroup:
    """Replies to prompts, as pairs (prompt, reply), after the summary of a person."""

    def example(prompt: str, reply: str) -> Example:
        question = tokenizer.chat([dict(message) for message in summaries.question(summary, prompt)])
        # A reply ends with the token that ends a turn, so that one of no words has a token, too.
        return to_score(question, [*tokenizer.plain(reply), tokenizer.stop_ids[0]])

    return shared_prompt([example(*pair) for pair in asked])


def sides(choice: Choice) -> Sequence[tuple[str, str]]:
    """The replies of a choice with their prompt, the chosen one first."""
    return (choice.prompt, choice.chosen), (choice.prompt, choice.rejected)


@dataclasses.dataclass(frozen=True)
class SummaryRewardModel:
    """The reward model that reads summaries: it pays for them, and learns by them.

    Attributes:
      taught: the number of summaries of each person that teach; they are the first ones.
      trains: whether the reward model learns.
      std: the divisor of gaps before they pay.
    """

    scorer: Scorer
    pair_up: PairPacker
    taught: int
    trains: bool = True
    std: float = 1.0

    def gaps(
        self, state: ScorerState, texts: Sequence[str], choices: Sequence[Sequence[Choice]]
    ) -> Float[np.ndarray, 'T P']:
        """The score of the chosen reply of each choice minus that of the other one, after each text."""
        return self.scorer.gaps(state, self.pair_up.compare(texts, choices))

    def read(
        self, state: ScorerState, texts: Sequence[str], choosers: Sequence[History], *, pays: bool, rate: float
    ) -> tuple[ScorerState, Float[np.ndarray, ' T'], Metrics]:
        """The state after a step on the choices that teach, and the reward of each summary by the state before it.

        Every chooser has equally many summaries, neighbours of each other. A reward is log sigmoid of the gap of the
        choice that pays, or of the choices that teach where nobody is paid.
        """
        count = len(texts) // len(choosers)
        first = min(count, self.taught)
        lesson = [text for k, text in enumerate(texts) if k % count < first]
        teach = [person.train for person in choosers for _ in range(first)]
        gaps, metrics = np.empty(0), {}
        # 1. Judge by the model as it is: a summary must not be paid for a choice that the model was just taught.
        if pays or not self.trains:
            judged = [(person.reward,) if pays else person.train for person in choosers for _ in range(count)]
            gaps = self.gaps(state, texts, judged)
        # 2. Learn the other choices by the first summaries of each person.
        if self.trains:
            state, before, metrics = self.scorer.learn(state, self.pair_up.learn(lesson, teach), rate)
            # Where nobody is paid there is one summary a person, which teaches, so its gaps are known from that.
            gaps = gaps if pays else gaps_of(before[..., 0])
        return state, log_sigmoid(gaps / self.std).mean(axis=1), metrics


def make_reward_model(settings: Settings, scorer: Scorer, pair_up: PairPacker) -> SummaryRewardModel:
    """The reward model that the settings describe."""
    named = settings.reward_model
    return SummaryRewardModel(scorer, pair_up, settings.summary.taught, named.train, named.std)


def summarize(texts: Sequence[str], rewards: np.ndarray, people: Sequence[History]) -> Metrics:
    """Means over the summaries of a step."""
    kinds = [person.kind for person in people for _ in range(len(texts) // len(people))]
    return {
        'reward': float(np.mean(rewards)),
        'reward_std': float(np.std(rewards)),
        'samples': float(len(texts)),
        'words': float(np.mean([len(text.split()) for text in texts])),
    } | conditioning.shares_naming_kind(texts, kinds)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


@dataclasses.dataclass(frozen=True)
class Replies:
    """Replies that another model writes to people, after a summary of the person and after none.

    The model is asked in the same words in which the reward model reads. It has not seen a summary before, and is not
    trained.

    Attributes:
      name: the model's name in the config; '' where there is none.
      models: the chat models of the config, which count their requests.
    """

    name: str
    model: ChatModel | None
    models: ChatModels
    seed: int

    def __call__(
        self, people: Sequence[History], describe: Callable[[Sequence[History]], list[str]], gaps: conditioning.Gaps
    ) -> tuple[dict[str, Any], list[Exhibit]]:
        """Figures and examples of the replies; nothing without a model, or without people.

        Raises:
          RuntimeError: the model wrote no reply.
        """
        if not self.model or not people:
            return {}, []
        record, examples = conditioning.personalise(self.model, gaps, people, describe(people), seed=self.seed)
        if not record['written']:
            why = self.models.last_error or 'they are empty'
            raise RuntimeError(f'condition={self.name} wrote no reply: {why}')
        return record | self.models.usage, [examples]


def make_replies(settings: Settings) -> Replies:
    """Raises ValueError where `settings.condition` names no model that there is."""
    models, name = ChatModels(settings.endpoints, settings.answers, settings.seed), settings.condition
    share = functools.partial(share_model, shares=sampler.make_shares(settings.decode))
    model: ChatModel | None = models.choose('condition', name, share) if name else None
    return Replies(name, model, models, settings.seed)

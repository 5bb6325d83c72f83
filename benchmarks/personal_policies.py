"""From reward to policy: do soups and PPO by a person's reward write what the person likes?

  python -m benchmarks.personal_policies --prompts=prompts.jsonl           # about half an hour on two cores
  python -m benchmarks.personal_policies --prompts=prompts.jsonl --quick   # about five minutes

Made-up people choose between replies of the embedded model, and the methods of the bench learn from them, as in
`personal_behaviour.py`. Then policies are made, adapters of the same model:

  poles    short PPO of one policy for each attribute of replies, paid by the rule that counts it
  soups    for each new person and each reward the weighted mean of these policies. A policy's weight is a softmax over
           policies of the person's mean reward on its replies to learning prompts, less its mean over policies, in
           deviations, over the temperature 0.5
  PPO      for a few new people and rewards, short PPO paid by the person's reward itself

Each policy answers held-out prompts. The table has, as means over people ± errors, the reward's accuracy on held-out
choices, the true utility of the policy's replies in deviations of the base's, and policy accuracy: the share of the
held-out choices whose preferred reply the policy finds likelier (`implicit`: by log-probabilities less the base's). The
base and the uniform soup have no reward; the oracle's is the true utility. The last line has Kendall's tau-b over
rewards between their accuracy and each other figure, with its bootstrap over people and its p by permuting rewards.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import softmax

from benchmarks import personal_behaviour as behaviour
from benchmarks import shapes
from benchmarks.behaviour import agreement, policy_accuracy
from benchmarks.personal_behaviour import ASKED, PAIRS, Learnt, People, Reader, Replies
from pal_jax.data import chats
from pal_jax.data.packing import Branch, PromptGroup, lay_out_groups, most_actions, pack_groups, pack_rollouts, round_up
from pal_jax.decode.answers import PolicySampler, load_base
from pal_jax.decode.requests import Request
from pal_jax.decode.sampler import make_decoder, samples_of, samples_to_json
from pal_jax.learners import ppo
from pal_jax.learners.training import Lora
from pal_jax.models import lora, merging, soups
from pal_jax.models.files import sources
from pal_jax.models.params import Params
from pal_jax.recipes.personal.bench.methods import FOR_TABLES, METHODS
from pal_jax.recipes.psoups.judges import Score
from pal_jax.recipes.psoups.prompts import Prompt
from pal_jax.recipes.psoups.rl import RLPHF
from pal_jax.run import devices, sharding
from pal_jax.run.accuracy import hits
from pal_jax.run.ahead import Ahead, RolloutsAhead
from pal_jax.run.forecast import Forecast
from pal_jax.run.language import DecodeSettings, ModelSettings
from pal_jax.run.models import Policy, make_policy
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import Context, Plan
from pal_jax.types import Metrics, Sampling

POLES = 'length', 'questions', 'warmth', 'formality', 'lists'  # the columns of `personal_behaviour.counts`
TEMPERATURE = 0.5  # of the softmax that weighs policies
LEARNERS = 'shared', 'lore', 'pref', 'mrm', 'gpo', 'shuffled', 'oracle'  # rewards of short PPO, by default
FEW = 'shared', 'lore', 'oracle'  # the same with --quick
UNPAID = 'base', 'uniform'  # policies that no reward made
SCORED = 2  # replies of a policy to each learning prompt, by which soups are weighed
ROW_TOKENS, SLOTS = 320, 64  # the tokens of a row of a batch, and the most replies decoded at once
FIGURES = ('reward accuracy', 'soup utility', 'soup policy accuracy', 'soup implicit', 'PPO utility',
           'PPO policy accuracy', 'PPO implicit')  # fmt: skip

Mixture = tuple[float, ...] | None  # the weights of policies, with sum 1; None: the base


class Sizes(NamedTuple):
    """The sizes of a run; `samples` of `batch` prompts make a step of PPO."""

    learning: int = 24  # prompts that rewards and policies learn from
    held: int = 8  # prompts held out
    replies: int = 16  # replies of the base to each
    tokens: int = 32  # of a reply
    seen: int = 100  # people that methods learn from
    new: int = 8  # people that soups are made for
    paid: int = 2  # the first of them, by whose rewards PPO pays
    poles: tuple[str, ...] = POLES  # attributes that have a policy
    steps: int = 4  # of PPO
    batch: int = 6
    samples: int = 4
    answers: int = 3  # of a policy to each held-out prompt
    rank: int = 16  # of adapters
    lr: float = 1e-3


QUICK = Sizes(
    learning=12, held=4, replies=6, tokens=24, seen=20, new=4, paid=1, poles=('length', 'warmth', 'formality'),
    steps=3, batch=4, samples=4, answers=2,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Models:
    """A base and its policies: LoRA adapters by the PPO of Personalized Soups, merged as it merges."""

    rl: RLPHF
    policy: Policy
    ctx: Context
    sampler: PolicySampler
    soups: Any  # the decoder of soups, which answer many prompts at once

    @functools.cached_property
    def base(self) -> Params:
        """The weights of the base, which are read once."""
        return load_base(self.policy, self.ctx)

    def base_replies(self, prompts: Sequence[str], n: int) -> list[str]:
        """`n` replies of the base to each prompt, side by side."""
        samples = self.sampler(self.base, prompts, n, (self.rl.seed, 1))
        return [sample.completion.text.strip() or '-' for sample in samples]

    def read(self, asked: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """The states `[n, H]` of replies in the base, each after the prompt that it answers."""
        return behaviour.read_states(self.base, self.policy.cfg, self.ctx.mesh, self.policy.tokenizer, asked, texts)

    def train(self, score: Score, prompts: Sequence[str], tell: Callable[[int, Metrics], None]) -> Params:
        """The adapters of a policy by PPO; `tell` gets the figures of each step."""
        train = [Prompt(str(i), prompt) for i, prompt in enumerate(prompts)]
        rl = dataclasses.replace(self.rl, score=score, train=train)
        state, host = rl.init()
        for i in range(self.rl.plan.total_steps):
            state, host, _, metrics = rl.step(state, host, i)
            tell(i, metrics)
        return state.actor.model.params

    def answers(
        self, policies: Sequence[Params], mixtures: Sequence[Mixture], prompts: Sequence[str], n: int
    ) -> list[list[str]]:
        """`n` replies to each prompt, side by side, of the soup of each mixture, all by the same random numbers."""
        repeated = [tuple(self.policy.tokenizer.chat(chats.as_chat(prompt))) for prompt in prompts for _ in range(n)]
        seeds = np.random.SeedSequence([self.rl.seed, 2]).generate_state(len(repeated), np.uint64).tolist()
        requests = [Request(prompt, self.sampler.sampling, seed, mixture)
                    for mixture in mixtures for prompt, seed in zip(repeated, seeds, strict=True)]  # fmt: skip
        self.soups.load(soups.stack(self.base, policies))
        texts = [completion.text.strip() or '-' for completion in self.soups(requests)]
        self.soups.release()
        return [texts[k : k + len(repeated)] for k in range(0, len(texts), len(repeated))]

    def logprobs(
        self, policies: Sequence[Params], mixture: Mixture, prompts: Sequence[str], texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The log-probability of each reply under a soup, its end not counted, and its length in tokens."""
        # The base is the first policy with its updates taken out, so that one program serves all.
        soup = merging.linear(policies, mixture) if mixture else jax.tree.map(np.zeros_like, policies[0])
        params = lora.join(jax.device_put(soup, sharding.replicated(self.ctx.mesh)), self.base)
        tokenizer, n = self.policy.tokenizer, len(texts) // len(prompts)
        branches = [Branch(tokenizer.encode(text)) for text in texts]
        groups = [PromptGroup(tokenizer.chat(chats.as_chat(prompt)), branches[q * n : (q + 1) * n])
                  for q, prompt in enumerate(prompts)]  # fmt: skip
        layout = lay_out_groups(groups, row_tokens=ROW_TOKENS)
        batch = pack_groups(groups, layout, n=n, actions=most_actions(groups))
        by_token = self.rl.learner.actor.logprobs(params, sharding.put_batch(batch, self.ctx.mesh))
        sums = np.sum(np.where(batch.acts, np.asarray(by_token), 0.0), axis=-1)
        total = np.zeros(len(texts))
        for r, row in enumerate(layout.rows):
            for place, g in enumerate(row):
                total[g * n : (g + 1) * n] = sums[r, place * n : (place + 1) * n]
        return total, np.array([len(branch.tokens) for branch in branches])


def make_models(source: str, sizes: Sizes, seed: int) -> Models:
    """The models of a source on one device."""
    ctx = Context(devices.make_mesh(devices=jax.local_devices()[:1]))
    policy = make_policy(ModelSettings(source=source, scan_layers=True), ctx, seed)  # a quarter of the time to compile
    sampling = Sampling(temperature=1.0, max_tokens=sizes.tokens)
    paid = ppo.PPO(
        estimator='group_norm', kl_in='loss', kl_estimator='k3', kl_coef=0.05, row_tokens=ROW_TOKENS, micro_rows=1,
        old_logprobs='sampler',
    )  # fmt: skip
    learner = ppo.make_actor_critic(
        policy.cfg, paid, Optimizer(lr=sizes.lr, warmup_ratio=0.0).over(sizes.steps), ctx.mesh,
        n=sizes.samples, length=sizes.tokens, adapters=Lora(rank=sizes.rank, alpha=2.0 * sizes.rank), seed=seed,
    )  # fmt: skip
    decoder = make_decoder(DecodeSettings(slots=SLOTS), policy, ctx, sizes.batch * sizes.samples)
    sampler = PolicySampler(decoder, policy.tokenizer, sampling)
    together = make_decoder(DecodeSettings(slots=SLOTS), policy, ctx)
    pack = functools.partial(
        pack_rollouts, n=sizes.samples, actions=round_up(sizes.tokens, 8), mesh=ctx.mesh, row_tokens=ROW_TOKENS
    )
    rollouts = RolloutsAhead(ctx, sizes.steps, Ahead('', 0, here=True), decoder, samples_to_json, samples_of)
    rl = RLPHF(
        Plan(sizes.steps, learner.abstract, lambda i: None), ctx, 'policy', learner, policy.source.load,
        sample=sampler, rollouts=rollouts, score=lambda readings, replies: np.zeros(0), judge=None, pack=pack,
        train=(), test=(), wanted=[()], batch_size=sizes.batch, n=sizes.samples, seed=seed,
    )  # fmt: skip
    return Models(rl, policy, ctx, sampler, together)


# --- rewards ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The rewards by their names, of which `oracle` is the true utility, and the people whose they are.

    `means` has for each prompt the mean of the states of the base's replies, `[H]`.
    """

    models: Models
    reader: Reader
    means: Mapping[str, np.ndarray]
    people: People
    learnt: Mapping[str, Learnt]

    @property
    def names(self) -> list[str]:
        return [*self.learnt, 'oracle']

    def of(self, name: str, users: Sequence[int], texts: Sequence[str], x: np.ndarray) -> np.ndarray:
        """The rewards `[users, n]` of new people for replies with coordinates `x`, up to a constant of each person."""
        if name == 'oracle':
            return self.people.new[list(users)] @ self.reader.attributes(texts).T
        return self.learnt[name].rewards(x, users)

    def coordinates(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        table = self.models.read(prompts, texts) - np.stack([self.means[prompt] for prompt in prompts])
        return self.reader.coordinates(table)

    def score(self, name: str, person: int) -> Score:
        """The reward of one person, by which PPO pays."""

        def score(readings: Sequence[Sequence[str]], replies: Sequence[Sequence[str]]) -> np.ndarray:
            prompts = [texts[0] for texts, answers in zip(readings, replies, strict=True) for _ in answers]
            texts = [text or '-' for answers in replies for text in answers]
            x = np.zeros((len(texts), 0)) if name == 'oracle' else self.coordinates(prompts, texts)
            return self.of(name, [person], texts, x)[0].reshape(len(replies), -1)

        return score

    def rule(self, pole: int) -> Score:
        """An attribute in its deviations, by which PPO pays the policy of a pole."""
        return lambda readings, replies: np.stack([self.reader.attributes(texts)[:, pole] for texts in replies])


def weights_of(scores: np.ndarray) -> np.ndarray:
    """The weights `[..., K]` of policies, with sum 1, by the mean rewards `[..., K]` of their replies."""
    spread = np.maximum(scores.std(axis=-1, keepdims=True), 1e-9)
    return softmax((scores - scores.mean(axis=-1, keepdims=True)) / spread / TEMPERATURE, axis=-1)


# --- the table --------------------------------------------------------------------------------------------------------


class Rows:
    """The figures of rewards and policies by name, a value for each new person, in the order of people."""

    def __init__(self):
        self.values: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, figures: Sequence[str], values: Sequence[float]) -> None:
        """One more person's figures."""
        for figure, value in zip(figures, values, strict=True):
            self.values.setdefault(name, {}).setdefault(figure, []).append(value)

    def __str__(self) -> str:
        """The table as Markdown."""
        head = ['method', *FIGURES]
        rows = {name: [np.array(row[figure]) if figure in row else None for figure in FIGURES]
                for name, row in self.values.items()}  # fmt: skip
        return behaviour.as_markdown(head, rows)

    def tau(self) -> dict[str, dict[str, Any]]:
        """The agreement over rewards, without the oracle, of their accuracy with each other figure."""
        result = {}
        for figure in FIGURES[1:]:
            rows = [row for name, row in self.values.items() if name not in ('oracle', *UNPAID) and figure in row]
            if len(rows) < 2:
                continue
            behaved = np.array([row[figure] for row in rows]).T
            agreed = agreement(np.array([row[FIGURES[0]] for row in rows]).T[: len(behaved)], behaved)
            alone = () if len(behaved) > 1 else ('low', 'high', 'mean')  # one person allows no bootstrap
            values = {key: None if key in alone or value != value else value for key, value in agreed._asdict().items()}
            result[figure] = {'rewards': len(rows), 'people': len(behaved), **values}
        return result


# --- the parts of a run -----------------------------------------------------------------------------------------------


class Watch:
    """Lines on the standard error, each after a step of a phase, with the time that is left."""

    def __init__(self, phases: Mapping[str, int]):
        self._forecast, self._step, self._since = Forecast(phases), 0, time.perf_counter()

    def begin(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._since = time.perf_counter()

    def stepped(self, text: str) -> None:
        now = time.perf_counter()
        self._forecast.stepped(self._step, {'seconds_step': now - self._since})
        print(f'{text}; {self._forecast.left(self._step)}', file=sys.stderr, flush=True)
        self._step, self._since = self._step + 1, now


class Held(NamedTuple):
    """Held-out prompts and the base's replies to them.

    `pairs [people, B, 2]` are the choices of new people: the numbers of the preferred reply and of the other one. `ref`
    and `lengths` are the replies' log-probabilities under the base and their lengths in tokens.
    """

    prompts: Sequence[str]
    texts: Sequence[str]
    pairs: np.ndarray
    ref: np.ndarray
    lengths: np.ndarray


class Measured(NamedTuple):
    """The attributes `[n, A]` of a policy's replies, and its log-probabilities of the base's replies."""

    marks: np.ndarray
    logprobs: np.ndarray

    def figures(self, held: Held, theta: np.ndarray, person: int) -> list[float]:
        """The utility `theta` of the replies, the policy accuracy, and the same less the base, of a person."""
        sides = (values[held.pairs[person]] for values in (self.logprobs, held.ref, held.lengths))
        accuracy = policy_accuracy(*sides)
        return [float((self.marks @ theta).mean()), accuracy.policy, accuracy.implicit]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run after its rewards were learnt: its parts in their order, each of which prints what it has seen."""

    models: Models
    rewards: Rewards
    sizes: Sizes
    learning: Sequence[str]
    rows: Rows
    watch: Watch

    def poles(self) -> list[Any]:
        """A policy for each attribute."""
        policies = []
        for pole in self.sizes.poles:
            score = self.rewards.rule(POLES.index(pole))
            policies.append(self.models.train(score, self.learning, self._tell(f'PPO for {pole}')))
        return policies

    def weigh(self, policies: Sequence[Any]) -> dict[str, np.ndarray]:
        """The weights `[people, K]` of the policies by each reward, from replies to learning prompts."""
        K, count = len(policies), len(self.rewards.people.new)
        self.watch.begin('policies answer learning prompts, and rewards weigh them')
        answers = self.models.answers(policies, list(map(tuple, np.eye(K).tolist())), self.learning, SCORED)
        texts = [text for by_policy in answers for text in by_policy]
        prompts = [prompt for _ in range(K) for prompt in self.learning for _ in range(SCORED)]
        marks = self.rewards.reader.attributes(texts).reshape(K, -1, len(POLES))
        columns = {pole: list(marks[k].T) for k, pole in enumerate(self.sizes.poles)}
        print(f'{behaviour.as_markdown(["policy", *POLES], columns)}\n', flush=True)
        x = self.rewards.coordinates(prompts, texts)
        by_reward = {name: self.rewards.of(name, range(count), texts, x) for name in self.rewards.names}
        return {name: weights_of(values.reshape(count, K, -1).mean(axis=-1)) for name, values in by_reward.items()}

    def measured(self, held: Held, policies: Sequence[Any], mixtures: Sequence[Mixture]) -> list[Measured]:
        """The soups of the mixtures on held-out prompts."""
        answers = self.models.answers(policies, mixtures, held.prompts, self.sizes.answers)
        return [
            Measured(
                self.rewards.reader.attributes(texts),
                self.models.logprobs(policies, mixture, held.prompts, held.texts)[0] if mixture else held.ref,
            )
            for mixture, texts in zip(mixtures, answers, strict=True)
        ]

    def soups(self, held: Held, policies: Sequence[Any], weights: Mapping[str, np.ndarray]) -> None:
        """A soup for each new person and reward, and the policies that no reward made."""
        K, known = len(policies), dict[Any, Measured]()
        for person, theta in enumerate(self.rewards.people.new):
            mixtures: dict[str, Mixture] = {'base': None, 'uniform': (1.0 / K,) * K}
            mixtures |= {name: tuple(by_person[person].tolist()) for name, by_person in weights.items()}
            # Rewards of all people alike make one soup, which is measured once.
            keys = {name: mixture and tuple(np.round(mixture, 6)) for name, mixture in mixtures.items()}
            new = {keys[name]: mixture for name, mixture in mixtures.items() if keys[name] not in known}
            known |= dict(zip(new, self.measured(held, policies, list(new.values())), strict=True))
            for name, key in keys.items():
                self.rows.add(name, FIGURES[1:4], known[key].figures(held, theta, person))
            self.tell_person(person, FIGURES[1], list(mixtures))
            self.watch.stepped(f'soups of person {person + 1}')

    def ppo(self, held: Held, policies: Sequence[Any], names: Sequence[str]) -> None:
        """Short PPO by the rewards of a few new people."""
        results, alone = dict[Any, Measured](), (1.0, *[0.0] * (len(policies) - 1))
        for person, theta in enumerate(self.rewards.people.new[: self.sizes.paid]):
            for name in names:
                key = name if name == 'shared' else (name, person)  # one policy for all people, or one of a person
                if key not in results:
                    tell = self._tell(f'PPO of person {person + 1} by {name}')
                    policy = self.models.train(self.rewards.score(name, person), self.learning, tell)
                    # In the place of the first policy, with all the weight, so that no other program is compiled.
                    (results[key],) = self.measured(held, [policy, *policies[1:]], [alone])
                self.rows.add(name, FIGURES[4:], results[key].figures(held, theta, person))
            self.tell_person(person, FIGURES[4], names)

    def tell_person(self, person: int, figure: str, names: Sequence[str]) -> None:
        cells = [f'{name} {self.rows.values[name][figure][person]:.2f}' for name in names]
        print(f'person {person + 1}, {figure}: {", ".join(cells)}', flush=True)

    def _tell(self, text: str) -> Callable[[int, Metrics], None]:
        def tell(i: int, metrics: Metrics) -> None:
            self.watch.stepped(f'{text}, step {i + 1}/{self.sizes.steps}: reward {metrics.get("reward", 0.0):.2f}')

        return tell


# --- from the command line --------------------------------------------------------------------------------------------


def prepared(
    models: Models, prompts: Sequence[str], names: Sequence[str], sizes: Sizes, seed: int, watch: Watch
) -> tuple[Rewards, Rows, Callable[[Sequence[Any]], Held]]:
    """The rewards, their accuracy on held-out choices, and a function that makes the held-out part, given policies."""
    n, first = sizes.replies, sizes.learning
    watch.begin(f'{len(prompts) * n} replies of the base to {len(prompts)} prompts are sampled')
    texts = models.base_replies(prompts, n)
    watch.begin('their states are read, and methods learn from choices')
    table = models.read([prompt for prompt in prompts for _ in range(n)], texts)
    means = behaviour.prompt_means(table, n)
    reader, whole = behaviour.read_replies(texts, table, means)
    learning, held = (Replies(*(side[part] for side in whole)) for part in (slice(first), slice(first, None)))
    people = behaviour.draw_people(sizes.seen, learning, seed)
    people = people._replace(new=people.new[: sizes.new])
    train, known, asked, gaps = behaviour.draw_all(learning, held, people, seed)
    learnt, rows = {}, Rows()
    for name in [*names, 'oracle']:
        if name != 'oracle':
            learnt[name] = behaviour.learn(name, train, known, seed)
        margins = learnt[name].margins(asked) if name in learnt else np.sum(gaps * people.new[asked.users], axis=1)
        right = hits(margins).reshape(-1, PAIRS).mean(axis=1)
        for value in right.tolist():
            rows.add(name, FIGURES[:1], [value])
        print(f'{name}: reward accuracy {right.mean():.3f}', flush=True)

    def hold(policies: Sequence[Any]) -> Held:
        # The same choices once more, by the numbers of their replies.
        numbers = held._replace(x=np.arange(held.x.shape[0] * n, dtype=np.float32).reshape(-1, n, 1))
        choices, _ = behaviour.draw_choices(numbers, people.new, people.scale, PAIRS, [seed, ASKED])
        pairs = np.hstack([choices.chosen, choices.rejected]).astype(int).reshape(-1, PAIRS, 2)
        read = models.logprobs(policies, None, prompts[first:], texts[first * n :])
        return Held(prompts[first:], texts[first * n :], pairs, *read)

    return Rewards(models, reader, dict(zip(prompts, means, strict=True)), people, learnt), rows, hold


def main(argv: Sequence[str] | None = None, make: Callable[[str, Sizes, int], Models] = make_models) -> None:
    known = [name for name in METHODS if name not in FOR_TABLES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--prompts', type=Path, required=True, help='JSON lines of prompt, instruction or text')
    parser.add_argument('--quick', action='store_true', help='few people, prompts and steps')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--source', default=sources.EMBEDDED, help='the model')
    parser.add_argument('--methods', type=shapes.listed(str, known), default=known, help=f'of {", ".join(known)}')
    parser.add_argument('--people', type=int, help=f'with soups; default {Sizes().new}, quick {QUICK.new}')
    parser.add_argument('--steps', type=int, help=f'of each PPO; default {Sizes().steps}, quick {QUICK.steps}')
    parser.add_argument('--ppo-people', type=int, help=f'0: none; default {Sizes().paid}, quick {QUICK.paid}')
    learners = shapes.listed(str, ['shared', *known, 'shuffled', 'oracle'])
    parser.add_argument('--ppo-methods', type=learners, help=f'default {",".join(LEARNERS)}, quick {",".join(FEW)}')
    args = parser.parse_args(argv)
    sizes = QUICK if args.quick else Sizes()
    changes = {'new': args.people, 'steps': args.steps, 'paid': args.ppo_people}
    sizes = sizes._replace(**{key: value for key, value in changes.items() if value is not None})
    if not (1 <= sizes.new <= sizes.seen and 0 <= sizes.paid <= sizes.new and sizes.steps >= 1):
        parser.error(f'--people from 1 to {sizes.seen}, --ppo-people from 0 to --people, --steps 1 or more')
    names = ['shared', *args.methods, 'shuffled']
    learners = args.ppo_methods or [name for name in (FEW if args.quick else LEARNERS) if name in (*names, 'oracle')]
    if absent := [name for name in learners if name not in (*names, 'oracle')]:
        parser.error(f'--ppo-methods has {absent[0]}, --methods has not; add it there')
    prompts = [text.strip() for text in behaviour.read_prompts(args.prompts, sizes.learning + sizes.held)]
    trainings = sum(1 if name == 'shared' else sizes.paid for name in learners) if sizes.paid else 0
    watch = Watch({'poles': len(sizes.poles) * sizes.steps, 'soups': sizes.new, 'PPO': trainings * sizes.steps})
    watch.begin(f'{args.source} is opened')
    models = make(args.source, sizes, args.seed)
    rewards, rows, hold = prepared(models, prompts, names, sizes, args.seed, watch)
    run = Run(models, rewards, sizes, prompts[: sizes.learning], rows, watch)
    policies = run.poles()
    weights, held = run.weigh(policies), hold(policies)
    run.soups(held, policies, weights)
    print(f'\n{rows}\n', flush=True)
    if trainings:
        run.ppo(held, policies, learners)
        print(f'\n{rows}\n')
    print(json.dumps({'ceiling': behaviour.CEILING, 'sizes': sizes._asdict(), 'tau': rows.tau()}))


if __name__ == '__main__':
    main()

"""From reward to behaviour: do rewards that predict a person's choices also pick the replies that the person likes?

  python -m benchmarks.personal_behaviour --prompts=prompts.jsonl                 # 40 prompts, 16 replies to each
  python -m benchmarks.personal_behaviour --prompts=prompts.jsonl --quick         # 12 prompts, 6 replies, 20 people
  python -m benchmarks.personal_behaviour --prompts=prompts.jsonl --replies=64 --readers=smollm2,encoder:mpnet

Prompts are JSON lines of `prompt`, `instruction` or `text`. The embedded model samples replies. Made-up people, half of
them seen and half new, have utilities `theta . attributes(reply)` of length, questions, warmth, formality and lists.
Each method of the bench learns from the seen people's noisy choices between replies and reads 20 of each new person's;
nobody's utility is computed by a reward. Rewards read the vectors that a reader, by default the embedded model, makes
of replies, less the mean over the replies to the same prompt, without the direction of lists.

For each reader and reward it prints, on prompts that nothing was learnt from and over new people: reward accuracy on
choices (with the same noise, so `ceiling` is the truth's), the utility of the best of 1, 4, 16 and 64 replies in
standard deviations of the person's utility, and the regret. `linear ceiling` is the truth by the attributes that ridge
regression finds in the vectors. `tau` is Kendall's tau-b between accuracy and utility over methods, with its 95 %
bootstrap over people and its p by permuting methods (`benchmarks/behaviour.py`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.behaviour import Agreement, agreement, best_of_n, regret
from pal_jax.data import records
from pal_jax.data.comparisons import PairBatch, shares
from pal_jax.data.texts import to_reply
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.judges.local_model import LocalModel
from pal_jax.models import states
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import sources
from pal_jax.models.params import Params, decoder_specs
from pal_jax.recipes.personal.bench.methods import FOR_TABLES, METHODS
from pal_jax.recipes.personal.interface import Fitted, Method
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.settings import TextSettings
from pal_jax.run import devices, intervals, sharding
from pal_jax.run.accuracy import hits
from pal_jax.run.files import write_whole
from pal_jax.types import Sampling

WIDTH, KNOWN, PAIRS = 32, 20, 200  # coordinates of replies, known choices of a new person, choices of a seen one
CEILING = 0.75  # the accuracy of the true utilities on choices
ASKED = 3  # takes the place of a number in the seed of the choices on held-out prompts
WARM = re.compile(r'\b(thank\w*|glad|happy|great|love\w*|hope|wonderful|welcome|please|sure|enjoy)\b|!', re.IGNORECASE)
BEST = 1, 4, 16, 64
PULLS = 1e-3, 1e-2, 1e-1, 1.0  # of ridge regressions
KEYS = 'prompt', 'instruction', 'text'

# Makes a number of replies, of so many tokens at most, to each prompt.
Sample = Callable[[Sequence[str], int, int], list[str]]
# Makes the vectors of replies by the name of a reader; it gets their prompts and the replies.
Read = Callable[[str, Sequence[str], Sequence[str]], np.ndarray]


class Replies(NamedTuple):
    """Replies to prompts: coordinates `[Q, N, H]` and attributes `[Q, N, A]`, which rewards do not read."""

    x: np.ndarray
    attributes: np.ndarray


class People(NamedTuple):
    """The tastes `[people, A]` of seen and of new people, and the noise of their choices."""

    seen: np.ndarray
    new: np.ndarray
    scale: float


class Behaviour(NamedTuple):
    """Figures of a reward by new person: accuracy on choices, utility of the best of as many of `BEST` as there are
    replies, and regret."""

    accuracy: np.ndarray  # [P]
    best: np.ndarray  # [P, n]
    regret: np.ndarray  # [P]


class Reader(NamedTuple):
    """The scales of attributes and the axes of coordinates, by the replies that the model gave before any training.

    Attributes:
      mean, std: the mean and the deviation of each attribute, `[A]`.
      spread: the deviation of each number of a state, `[D]`; some numbers would outweigh all others.
      axes: the principal coordinates of states, which are less their prompt's mean and over the spread.
      way: the direction of lists in these, which is taken out.
    """

    mean: np.ndarray
    std: np.ndarray
    spread: np.ndarray
    axes: states.Frame
    way: np.ndarray

    def attributes(self, texts: Sequence[str]) -> np.ndarray:
        """The attributes `[n, A]` of replies, in deviations from those of the first replies."""
        return (counts(texts) - self.mean) / self.std

    def coordinates(self, table: np.ndarray) -> np.ndarray:
        """The coordinates `[n, H]` that rewards read of replies, by their states less their prompt's mean."""
        return less(states.in_frame(table / self.spread, self.axes), self.way)


class Learnt(NamedTuple):
    """A method that has learnt from the seen people, and the choices of the new ones that it knows."""

    method: Method
    fitted: Fitted
    known: PairBatch

    def margins(self, asked: PairBatch) -> np.ndarray:
        """The margins `[B]` of choices of new people."""
        return np.asarray(self.method.margins(self.fitted, self.known, asked))

    def rewards(self, x: np.ndarray, users: Sequence[int]) -> np.ndarray:
        """The rewards `[users, n]` of replies by their coordinates, up to a constant of each person: the margins over
        one and the same reply."""
        everything = np.tile(x, (len(users), 1))
        numbers = np.repeat(np.asarray(users, np.int32), len(x))
        choices = PairBatch(numbers, everything, np.zeros_like(everything), shares(numbers), people=self.known.people)
        return self.margins(choices).reshape(len(users), len(x))


def counts(texts: Sequence[str]) -> np.ndarray:
    """Length, questions, warmth, formality and lists of replies `[n, A]`, each in its own unit."""
    rows = []
    for text in texts:
        words = re.findall(r'\w+', text)
        long = sum(len(word) > 7 for word in words) / max(len(words), 1)
        lists = len(re.findall(r'^\s*(?:[-*•]|\d+\.)', text, re.MULTILINE))
        rows.append([len(text), text.count('?'), len(WARM.findall(text)), lists, long])
    *numbers, long = np.array(rows, float).T
    length, questions, warmth, lists = np.log1p(numbers)  # one more of them counts less and less
    return np.stack([length, questions, warmth, long, lists], axis=1)


def make_reader(texts: Sequence[str], table: np.ndarray, width: int = WIDTH) -> Reader:
    """The scales and `width` axes of these replies, by their states `[n, H]` less their prompt's mean."""
    raw = counts(texts)
    # An attribute that no reply has, and a number that is the same in all states, are in their own unit.
    std, spread = (np.where(x.std(axis=0) > 1e-9, x.std(axis=0), 1.0) for x in (raw, table))
    axes = states.frame(table / spread, min(width, table.shape[1]))
    reader = Reader(raw.mean(axis=0), std, spread, axes, np.zeros(axes.basis.shape[1]))
    return reader._replace(way=direction(reader.coordinates(table), reader.attributes(texts)[:, -1]))


def direction(x: np.ndarray, attribute: np.ndarray) -> np.ndarray:
    """The direction `[H]`, of length 1, along which ridge regression of `x [n, H]` finds an attribute `[n]`."""
    way = ridge(x, attribute, PULLS[0])
    return way / np.maximum(np.linalg.norm(way), 1e-9)


def ridge(x: np.ndarray, y: np.ndarray, pull: float) -> np.ndarray:
    """The weights by which `x [n, H]` foretells `y`, with a pull to 0."""
    return np.linalg.solve(x.T @ x + len(x) * pull * np.eye(x.shape[1]), x.T @ y)


def reading(replies: Replies) -> np.ndarray:
    """The weights `[H, A]` by which coordinates foretell attributes. The last fifth of the prompts chooses the pull."""
    Q, N, H = replies.x.shape
    flat = replies.x.reshape(-1, H), replies.attributes.reshape(Q * N, -1)
    cut = (Q - max(1, Q // 5)) * N
    fitted, tested = zip(*((side[:cut], side[cut:]) for side in flat), strict=True)

    def error(pull: float) -> float:
        return float(np.mean(np.square(tested[0] @ ridge(*fitted, pull) - tested[1])))

    return ridge(*flat, min(PULLS, key=error))


def less(x: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Coordinates `[n, H]` less their part along a direction."""
    return (x - np.outer(x @ way, way)).astype(np.float32)


def draw_people(count: int, replies: Replies, seed: int) -> People:
    """`count` seen and as many new people, with a common taste and own ones, whose choices have the ceiling."""
    rng = np.random.default_rng([seed, 0])
    width = replies.attributes.shape[-1]
    theta = 0.5 * rng.normal(size=width) + rng.normal(size=(2 * count, width))
    flat = replies.attributes.reshape(-1, width)
    theta /= (flat @ theta.T).std(axis=0)[:, None]
    # The noise of choices at which the truth is right on CEILING of the pairs, by bisection.
    a, b = rng.integers(0, len(flat), (2, 4000))
    gaps = np.abs(((flat[a] - flat[b]) @ theta.T).ravel())
    low, high = 1e-3, 1e3
    for _ in range(60):
        scale = np.sqrt(low * high)
        right = np.mean(1 / (1 + np.exp(-scale * gaps)))
        low, high = (scale, high) if right < CEILING else (low, scale)
    return People(theta[:count], theta[count:], float(np.sqrt(low * high)))


def draw_choices(
    replies: Replies, theta: np.ndarray, scale: float, count: int, seed: Sequence[int]
) -> tuple[PairBatch, np.ndarray]:
    """`count` noisy choices of each person between two replies to one prompt, and the differences `[B, A]` of their
    attributes, which no reward reads."""
    rng = np.random.default_rng(seed)
    many, n = replies.x.shape[:2]
    users = np.repeat(np.arange(len(theta), dtype=np.int32), count)
    prompt, first = rng.integers(0, many, len(users)), rng.integers(0, n, len(users))
    second = (first + rng.integers(1, n, len(users))) % n
    gaps = replies.attributes[prompt, first] - replies.attributes[prompt, second]
    won = rng.random(len(users)) < 1 / (1 + np.exp(-scale * np.sum(gaps * theta[users], axis=1)))
    chosen, rejected = (replies.x[prompt, np.where(won, *pair)] for pair in ((first, second), (second, first)))
    choices = PairBatch(users, chosen, rejected, shares(users), people=len(theta))
    return choices, np.where(won[:, None], gaps, -gaps)


class Drawn(NamedTuple):
    """The choices of the seen people and those that are known of new ones, on learning prompts; the choices that new
    people are asked on held-out prompts, with the differences of their attributes."""

    train: PairBatch
    known: PairBatch
    asked: PairBatch
    gaps: np.ndarray


def draw_all(learning: Replies, held: Replies, people: People, seed: int) -> Drawn:
    """The choices of all people, which the seed determines."""
    train, _ = draw_choices(learning, people.seen, people.scale, PAIRS, [seed, 1])
    known, _ = draw_choices(learning, people.new, people.scale, KNOWN, [seed, 2])
    return Drawn(train, known, *draw_choices(held, people.new, people.scale, PAIRS, [seed, ASKED]))


def learn(name: str, train: PairBatch, known: PairBatch, seed: int) -> Learnt:
    """A method of the bench, or LoRe with one reward for all (`shared`) or with shuffled people (`shuffled`)."""
    method = METHODS['lore' if name in ('shared', 'shuffled') else name]
    option = {'K': 1} if name == 'shared' else method.options[0]
    if name == 'shuffled':
        rng = np.random.default_rng([seed, 4])
        train, known = (side.replace(users=rng.permutation(side.users)) for side in (train, known))
    return Learnt(method, method.fit(train, seed, **option), known)


def behave(learning: Replies, held: Replies, people: People, seed: int, names: Sequence[str]) -> dict[str, Behaviour]:
    """The figures of each reward on held-out prompts, over new people."""
    train, known, asked, gaps = draw_all(learning, held, people, seed)
    Q, N, H = held.x.shape
    utility = np.einsum('qna,pa->pqn', held.attributes, people.new)

    def judged(margins: np.ndarray, rewards: np.ndarray) -> Behaviour:
        right = np.bincount(asked.users, hits(np.asarray(margins))) / np.bincount(asked.users)
        rewards = np.asarray(rewards).reshape(utility.shape)
        pairs = [[(rewards[p, q], utility[p, q]) for q in range(Q)] for p in range(len(people.new))]
        best = [[np.mean([best_of_n(*pair, n) for pair in of_one]) for n in BEST if n <= N] for of_one in pairs]
        return Behaviour(right, np.array(best), np.array([np.mean([regret(*pair) for pair in of_one])
                                                          for of_one in pairs]))  # fmt: skip

    rows = {}
    for name in names:
        learnt = learn(name, train, known, seed)
        rows[name] = judged(learnt.margins(asked), learnt.rewards(held.x.reshape(-1, H), range(len(people.new))))
    read = reading(learning)
    gaps_read = (asked.chosen - asked.rejected) @ read
    rows['linear ceiling'] = judged(
        np.sum(gaps_read * people.new[asked.users], axis=1), np.einsum('qnh,ha,pa->pqn', held.x, read, people.new)
    )
    # The truth, which no reward may pass, and the length alone. Neither reads the coordinates.
    rows['oracle'] = judged(np.sum(gaps * people.new[asked.users], axis=1), utility)
    rows['length'] = judged(gaps[:, 0], np.broadcast_to(held.attributes[None, ..., 0], utility.shape))
    return rows


def agree(rows: dict[str, Behaviour]) -> Agreement:
    """The agreement over methods, without those that know the truth, of reward accuracy and the utility of the best of
    the most."""
    names = [name for name in rows if name not in ('oracle', 'linear ceiling')]
    return agreement(
        np.stack([rows[name].accuracy for name in names], axis=1),
        np.stack([rows[name].best[:, -1] for name in names], axis=1),
    )


def sampled(prompts: Sequence[str], n: int, tokens: int) -> list[str]:
    """`n` replies of the embedded model to each prompt, side by side."""
    source = sources.resolve(sources.EMBEDDED)
    model = LocalModel(source, one_device(), Sampling(temperature=1.0, max_tokens=tokens), slots=16)
    chats = [[{'role': 'user', 'content': prompt}] for prompt in prompts]
    draws = [model(chats, k) for k in range(n)]
    return [draws[k][q] or '-' for q in range(len(prompts)) for k in range(n)]


def one_device() -> Mesh:
    return devices.make_mesh(devices=jax.local_devices()[:1])


def read_by(reader: str, asked: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """The vectors `[n, H]` that a decoder or an encoder of sentences makes of replies, each after its prompt."""
    mesh = one_device()
    if reader.startswith(pal_text.ENCODER):
        encoder = pal_text.open_encoder(TextSettings(source=reader))
        read = pal_text.sentence_reader(encoder, mesh, None)
        return read([to_reply(encoder.tokenizer, prompt, text.strip() or '-', chat=False, alone=False)[0]
                     for prompt, text in zip(asked, texts, strict=True)])  # fmt: skip
    source = sources.resolve(reader)
    cfg = devices.for_platform(source.config)
    params = source.load(sharding.param_shardings(decoder_specs(cfg), mesh))
    return read_states(params, cfg, mesh, source.tokenizer(), asked, texts)


def read_states(
    params: Params, cfg: ModelConfig, mesh: Mesh, tokenizer: Tokenizer, asked: Sequence[str], texts: Sequence[str]
) -> np.ndarray:
    """The states `[n, H]` of replies, each after the prompt that it answers."""
    replies = [to_reply(tokenizer, prompt, text.strip() or '-', chat=True, alone=False)[0]
               for prompt, text in zip(asked, texts, strict=True)]  # fmt: skip
    table = np.zeros((len(texts), cfg.width), np.float32)
    for numbers, vectors in states.hidden_states(params, cfg, mesh, replies):
        table[numbers] = vectors
    return table


def in_halves(texts: Sequence[str], table: np.ndarray, n: int, width: int = WIDTH) -> tuple[Replies, Replies]:
    """The replies to learn from, and those to prompts that are held out, in few coordinates without that of lists."""
    _, whole = read_replies(texts, table, prompt_means(table, n), width)
    half = len(whole.x) // 2
    return Replies(*(side[:half] for side in whole)), Replies(*(side[half:] for side in whole))


def prompt_means(table: np.ndarray, n: int) -> np.ndarray:
    """The mean `[Q, H]` of the states `[Q * n, H]` of the `n` replies to each prompt, which stand side by side."""
    return table.reshape(-1, n, table.shape[1]).mean(axis=1)


def read_replies(
    texts: Sequence[str], table: np.ndarray, means: np.ndarray, width: int = WIDTH
) -> tuple[Reader, Replies]:
    """The reader of replies, and the replies to each prompt as rewards and people read them, by their states
    `[Q * n, H]` and the `means [Q, H]` of prompts."""
    # A state mostly tells the prompt, which two replies to it share.
    table = table - np.repeat(means, len(table) // len(means), axis=0)
    reader = make_reader(texts, table, width)
    sides = reader.coordinates(table), reader.attributes(texts)
    return reader, Replies(*(side.reshape(len(means), -1, side.shape[1]) for side in sides))


def table_of(rows: dict[str, Behaviour]) -> str:
    """The figures as Markdown, means over people and standard errors."""
    sizes = BEST[: next(iter(rows.values())).best.shape[1]]
    head = ['reward', 'reward accuracy', *(f'best of {n}' for n in sizes), 'regret']
    return as_markdown(head, {name: [row.accuracy, *row.best.T, row.regret] for name, row in rows.items()})


def as_markdown(head: Sequence[str], rows: Mapping[str, Sequence[np.ndarray | None]]) -> str:
    """Means over people ± standard errors of the columns of each row; a figure of one person has no error."""

    def cell(x: np.ndarray | None) -> str:
        if x is None:
            return ''
        return intervals.mean(x).with_error()

    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    lines += ['| ' + ' | '.join([name, *map(cell, columns)]) + ' |' for name, columns in rows.items()]
    return '\n'.join(lines)


def read_prompts(path: Path, count: int) -> list[str]:
    """The first prompts of a file of JSON lines. Raises ValueError where a row has none, or there are too few."""
    prompts: list[str] = []
    for place, row in records.rows(str(path)):
        text = next((row[key] for key in KEYS if isinstance(row.get(key), str) and row[key].strip()), None)
        if text is None:
            raise ValueError(f'{place} has no text in {", ".join(KEYS)}')
        prompts.append(text)
    if len(prompts) < count:
        raise ValueError(f'{path} has {len(prompts)} prompts; give {count} or more')
    return prompts[:count]


def replies_of(kept: str, prompts: Sequence[str], n: int, tokens: int, sample: Sample) -> list[str]:
    """`n` replies to each prompt, side by side, of the file `kept`, which is written where it does not exist."""
    if not kept or not Path(kept).exists():
        texts = sample(prompts, n, tokens)
        rows = [{'prompt': prompts[i // n], 'reply': text} for i, text in enumerate(texts)]
        if kept:
            write_whole(Path(kept), ''.join(json.dumps(row) + '\n' for row in rows))
        return texts
    rows = [row for _, row in records.rows(kept)]
    if [row['prompt'] for row in rows] != [prompt for prompt in prompts for _ in range(n)]:
        raise ValueError(f'{kept} has replies to other prompts, or another number of them; give another --kept')
    return [row['reply'] for row in rows]


def main(argv: Sequence[str] | None = None, sample: Sample = sampled, read: Read = read_by) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--prompts', type=Path, required=True)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--methods', default='', help='names of the bench, by commas; default all')
    parser.add_argument('--readers', default='smollm2', help='sources, or encoder:<name or folder>, by commas')
    parser.add_argument('--replies', type=int, default=0, help='to a prompt; default 16, or 6 with --quick')
    parser.add_argument('--count', type=int, default=0, help='of prompts; default 40, or 12 with --quick')
    parser.add_argument('--width', type=int, default=WIDTH, help='coordinates of replies')
    parser.add_argument('--kept', default='', help='a file for the replies, which later runs read')
    args = parser.parse_args(argv)
    count, n, people, tokens = (12, 6, 20, 32) if args.quick else (40, 16, 100, 64)
    n = args.replies or n
    names = args.methods.split(',') if args.methods else [name for name in METHODS if name not in FOR_TABLES]
    prompts = read_prompts(args.prompts, args.count or count)
    texts = replies_of(args.kept, prompts, n, tokens, sample)
    for reader in args.readers.split(','):
        table = read(reader, [prompt for prompt in prompts for _ in range(n)], texts)
        learning, held = in_halves(texts, table, n, args.width)
        drawn = draw_people(people, learning, args.seed)
        rows = behave(learning, held, drawn, args.seed, ['shared', *names, 'shuffled'])
        print(f'{reader}, {table.shape[1]} numbers\n\n{table_of(rows)}')
        print(json.dumps({'reader': reader, 'ceiling': CEILING, 'tau': agree(rows)._asdict()}), flush=True)


if __name__ == '__main__':
    main()

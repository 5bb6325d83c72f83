"""What supervised methods learn from: the lines of files, the oracle's answers to RLPA's training people, or answers to
what they told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jax.sharding import Mesh

from pal_jax.data import chats
from pal_jax.data.packing import Group, most_actions, pack_whole
from pal_jax.envs import dialogue as env
from pal_jax.feedback import recall
from pal_jax.feedback.oracle import make_answers
from pal_jax.feedback.people import SLOTS, make_people
from pal_jax.feedback.users import make_scripted_user
from pal_jax.recipes.recipe import Config, check_at_least
from pal_jax.runtime import sharding
from pal_jax.types import TokenBatch


class Rows(NamedTuple):
    """Groups of `n` branches of up to `actions` actions, to learn from and to test on. `left_out` groups were longer
    than `data.max_length`."""

    train: list[Group]
    test: list[Group]
    n: int
    actions: int
    left_out: int

    def draw(self, config: Config, i: int) -> list[Group]:
        """What step `i` learns from, in shuffled passes over all: by its number, so a resumed run has no position to
        remember."""
        passes = grain.MapDataset.source(self.train).seed(config.seed).shuffle().repeat()
        batches: Any = passes.batch(config.data.batch_size, batch_fn=list)
        return batches[i]

    def batch(self, config: Config, mesh: Mesh, i: int) -> TokenBatch:
        """The same as a batch."""
        return self._packed(self.draw(config, i), config, mesh)

    def tests(self, config: Config, mesh: Mesh) -> Iterator[tuple[int, TokenBatch]]:
        """All test rows, in batches with their number of rows."""
        for groups in self.test_groups(config):
            yield len(groups), self._packed(groups, config, mesh)

    def test_groups(self, config: Config) -> Iterator[list[Group]]:
        """All test rows, as many at once as a step has."""
        size = config.data.batch_size
        for start in range(0, len(self.test), size):
            yield self.test[start : start + size]

    def _packed(self, groups: list[Group], config: Config, mesh: Mesh) -> TokenBatch:
        ways, row_tokens = sharding.batch_ways(mesh), config.data.row_tokens
        packed = pack_whole(groups, n=self.n, actions=self.actions, ways=ways, row_tokens=row_tokens)
        return sharding.put_batch(packed, mesh)


def apart(rows: Sequence[Group]) -> list[list[Group]]:
    """Each by itself."""
    return [[row] for row in rows]


def make_rows(
    config: Config, convert: Callable[[Any], Group], key: str, n: int,
    gather: Callable[[Sequence[Group]], list[list[Group]]] = apart,
) -> Rows:  # fmt: skip
    """`convert` of every record: of a file, or of those that `MADE` has by this name, whose good answers go by `key`.
    `gather` makes of them groups to learn from, in parts that are learnt from or tested on as a whole.

    Raises:
      ValueError: a file with a line that is none, or nothing to learn from or to test on.
    """
    data = config.data
    made = MADE.get(data.train)
    if made:
        parts = [list(itertools.chain(*gather(list(map(convert, records))))) for records in made(config, key)]
    else:
        parts = gather(chats.read(data.train, convert))
    if data.test:
        train, test = (list(itertools.chain(*each)) for each in (parts, gather(chats.read(data.test, convert))))
    else:
        train, test = hold_out(parts, data.test_rows)
    kept, tested = ([group for group in each if group.length <= data.max_length] for each in (train, test))
    if not kept or not tested:
        raise ValueError(
            f'{len(kept)} rows to learn from and {len(tested)} to test on, of {len(train)} and {len(test)}, are of at '
            f'most data.max_length={data.max_length} tokens; give more rows, a data.test file, or raise it'
        )
    return Rows(kept, tested, n, most_actions([*kept, *tested]), len(train) + len(test) - len(kept) - len(tested))


def hold_out(parts: list[list[Group]], most: int) -> tuple[list[Group], list[Group]]:
    """What is learnt, and of the last parts up to `most` rows and a fifth of all, but one part at least. A part stays
    together: who is tested on has said nothing to learn from."""
    sizes = np.cumsum([len(part) for part in reversed(parts)])
    held = max(int(np.sum(sizes <= min(most, sizes[-1] // 5))), 1)
    cut = len(parts) - held
    return list(itertools.chain(*parts[:cut])), list(itertools.chain(*parts[cut:]))


def oracle_records(config: Config, key: str) -> Iterator[list[dict[str, Any]]]:
    """Of each person the oracle's answers in the format of files: the good one as `key`, the other as `rejected`."""
    oracle, system = config.oracle, env.actor_prompt(SLOTS)
    people = make_people(oracle.people, seed=config.seed, facts=oracle.facts)
    user = make_scripted_user(p_spontaneous=oracle.p_spontaneous)
    by_person: dict[str, list[dict[str, Any]]] = {}
    for dialogue, good, worse in make_answers(people, user, rounds=oracle.rounds, seed=config.seed):
        said = [[{'role': 'assistant', 'content': text}] for text in (good, worse)]
        record = {'prompt': env.messages(dialogue, system), key: said[0], 'rejected': said[1]}
        by_person.setdefault(dialogue.person.id, []).append(record)
    yield from by_person.values()


def recall_records(config: Config, key: str) -> Iterator[list[dict[str, Any]]]:
    """Right and wrong answers to what the same people told."""
    people = make_people(config.oracle.people, seed=config.seed, facts=config.oracle.facts)
    pairs = recall.make_pairs(people, config.seed)
    for person in people:
        records = []
        for asked, *answers in itertools.islice(pairs, len(person.facts)):
            right, wrong = ([{'role': 'assistant', 'content': text}] for text in answers)
            records.append({'prompt': list(asked), key: right, 'rejected': wrong})
        yield records


MADE = {'oracle': oracle_records, 'recall': recall_records}


def steps_of(config: Config, rows: Rows) -> int:
    """`total_steps`, or as many as `data.epochs` passes over the rows take."""
    return config.total_steps or -(-round(config.data.epochs * len(rows.train)) // config.data.batch_size)


def check(config: Config) -> None:
    """Raises ValueError where a size is wrong, before a file is read."""
    data = config.data
    check_at_least(config, 0, 'total_steps', 'data.row_tokens')
    check_at_least(
        config, 1, 'data.batch_size', 'data.micro_rows', 'data.max_length', 'data.test_rows', 'checkpoint.every'
    )
    if data.train in MADE:
        check_at_least(config, 2, 'oracle.people')
        check_at_least(config, 1, 'oracle.rounds')
    if not config.total_steps and data.epochs <= 0:
        raise ValueError(f'data.epochs={data.epochs} must be above 0, or give total_steps')

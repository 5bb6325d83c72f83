"""The rows that supervised methods learn from: lines of files, or records that a method makes up (`run/made.py`)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epy
from jax.sharding import Mesh
from jaxtyping import Int

from pal_jax.data import chats, holdouts, records
from pal_jax.data.packing import PromptGroup, branch_places, lay_out_groups, most_actions, pack_groups, shared_prompt
from pal_jax.data.readers import formats
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.actor import Actor
from pal_jax.learners.scorer import to_score
from pal_jax.models.config import ModelConfig
from pal_jax.run import made, sharding
from pal_jax.run.forecast import counted
from pal_jax.run.language import RowRun, RowSettings, SupervisedRun
from pal_jax.run.models import Policy, keeping, make_adapters
from pal_jax.run.recipe import Context, Plan, check_at_least, stage_before
from pal_jax.run.trained import TrainedModel
from pal_jax.types import TokenBatch

# Grain is imported at its first use, since it takes a second, and a wrong key is told without it.
with epy.lazy_imports():
    import grain

Keyed = tuple[str, PromptGroup]  # the content of a prompt (`PromptedReplies.content`), and a group with that prompt
Entry = TypeVar('Entry')
PLAIN = (
    'learnt as texts without the chat template, in which chat, serve and --config=rl ask; --config.chat=True learns '
    'them as messages'
)

OF_PAIRS = 'pairs of replies, of which the chosen ones are learnt and the rejected ones are not read'


class Rows(NamedTuple):
    """Rows to learn from and to test on, and their batches; a row is a group of `n` branches, such as a prompt with
    answers.

    Attributes:
      actions: the largest number of actions of a branch.
      left_out: the number of rows that were longer than `data.max_length`.
      moved: the number of rows that are not where a split of single rows would have put them, or are left out, because
        another row has their prompt.
      batch_size: the number of rows of an update.
      row_tokens: the length in tokens of a row of the device batch, which several rows share; 0: each row has its own.
      seed: the seed of the order in which rows are drawn.
      warnings: lines on settings that cannot be kept, such as `holdouts.fewer`, each after a line break.
      plain: the number of rows whose prompts are texts, in which no token of a chat template stands.
      pairs: the number of rows to imitate that are pairs.
      system: the system prompt that all rows begin with; '' where there is none, or several.
      test_prompts: the contents of the prompts of `test`, by which rows are compared.
    """

    train: list[PromptGroup]
    test: list[PromptGroup]
    n: int
    actions: int
    left_out: int
    moved: int = 0
    batch_size: int = 1
    row_tokens: int = 0
    seed: int = 0
    warnings: str = ''
    plain: int = 0
    pairs: int = 0
    system: str = ''
    test_prompts: Sequence[str] = ()

    @property
    def told(self) -> str:
        """The split of the rows, in a line."""
        rows = f'{counted(len(self.train), "row")} to learn from, {len(self.test)} to test on, which have other prompts'
        shared = f' ({counted(self.moved, "row")} with the prompt of another row)' if self.moved else ''
        plain = f'\nwarning: {counted(self.plain, "prompt")} are {PLAIN}' if self.plain else ''
        pairs = f'\n{counted(self.pairs, "row")} of the file are {OF_PAIRS}' if self.pairs else ''
        return f'{rows}{shared}{self.warnings}{plain}{pairs}'

    def draw(self, i: int) -> list[PromptGroup]:
        """The rows of step `i`, in shuffled passes over all rows."""
        # The rows follow from the step's number, so a run that resumes needs to remember no position.
        passes = grain.MapDataset.source(self.train).seed(self.seed).shuffle().repeat()
        batches: Any = passes.batch(self.batch_size, batch_fn=list)
        return batches[i]

    def batch(self, i: int, mesh: Mesh) -> TokenBatch:
        """The rows of step `i` on the devices."""
        return self._packed(self.draw(i), mesh)[1]

    def tests(self, mesh: Mesh) -> Iterator[tuple[Int[np.ndarray, 'R K'], TokenBatch]]:
        """All test rows on the devices, in batches with the index in `test` of each branch's row; -1: no branch."""
        start = 0
        for groups in self.test_groups():
            places, batch = self._packed(groups, mesh)
            yield np.where(places < 0, -1, start + places), batch
            start += len(groups)

    def test_groups(self) -> Iterator[list[PromptGroup]]:
        """All test rows, as many at once as a step has."""
        for start in range(0, len(self.test), self.batch_size):
            yield self.test[start : start + self.batch_size]

    def _packed(self, groups: list[PromptGroup], mesh: Mesh) -> tuple[Int[np.ndarray, 'R K'], TokenBatch]:
        layout = lay_out_groups(groups, ways=sharding.batch_ways(mesh), row_tokens=self.row_tokens)
        batch = pack_groups(groups, layout, n=self.n, actions=self.actions)
        return branch_places(layout, self.n), sharding.put_batch(batch, mesh)


def one_group_a_row(rows: Sequence[PromptGroup]) -> list[list[PromptGroup]]:
    """Groups of one row each, for methods that gather none."""
    return [[row] for row in rows]


def make_rows(
    settings: SupervisedRun,
    tokenizer: Tokenizer,
    convert: Callable[[Tokenizer, Any], PromptGroup],
    key: str,
    n: int,
    gather: Callable[[Sequence[PromptGroup]], list[list[PromptGroup]]] = one_group_a_row,
) -> Rows:
    """The rows of every record, made by `convert`: of a file, or of the records that a method makes up by that name.

    The good answers of made-up records stand at `key`. `gather` makes groups to learn from of the rows of one prompt.
    All rows of a prompt are learnt, or all are tested on. With `settings.chat`, texts become messages.

    Raises:
      ValueError: `data.train` is neither a file nor made up, a line of a file is no record, or there is nothing to
        learn from or to test on.
    """
    data, read = settings.data, formats.imitated if key == 'completion' else formats.preferred
    plain: list[bool] = []
    pairs: list[bool] = []
    systems: set[str] = set()

    def keyed(rows: Sequence[tuple[str, PromptGroup]]) -> list[Keyed]:
        by_prompt: dict[str, list[PromptGroup]] = {}
        for content, row in rows:
            by_prompt.setdefault(content, []).append(row)
        return [(content, group) for content, rows in by_prompt.items() for group in itertools.chain(*gather(rows))]

    def contained(record: Any) -> tuple[str, PromptGroup]:
        record = chats.of_texts(record, tokenizer) if settings.chat else record
        row = read(record)
        if isinstance(row.prompt, str):
            if settings.chat:
                raise ValueError(
                    "chat=True learns texts as chats, and the row has no 'prompt' of its own; leave it out"
                )
            plain.append(chats.is_plain(row.prompt, tokenizer))
        pairs.append(key == 'completion' and formats.is_pair(record))
        systems.add(formats.system_of(row.prompt))
        return row.content, convert(tokenizer, record)._replace(source=row.prompt)

    # Made-up records come in parts, one for each person; a file is one part.
    if maker := made.maker('data.train', data.train):
        parts = [keyed(list(map(contained, records))) for records in maker(settings, key)]
    else:
        parts = [keyed(records.read_all(data.train, contained))]
    # A file of tests decides first, then the people, and a split by prompts is left for single files.
    if data.test:
        train, test, moved = without_test_prompts(
            list(itertools.chain(*parts)), keyed(records.read_all(data.test, contained)), data
        )
    elif maker:
        train, test, moved = of_people(parts, data.test_rows)
    else:
        train, test, moved = by_prompt(parts[0], data)
    rows = short_rows(settings, train, test, moved, n)
    # A file of tests is tested on as a whole, and made-up people are not cut in two.
    fewer = '' if data.test or maker else fewer_tests(data, test)
    system = systems.pop() if len(systems) == 1 else ''
    warnings = f'{fewer}{unused_epochs(settings)}'
    return rows._replace(warnings=warnings, plain=sum(plain), pairs=sum(pairs), system=system)


def short_rows(settings: RowRun, train: list[Keyed], test: list[Keyed], moved: int, n: int) -> Rows:
    """The rows of at most `data.max_length` tokens. Raises ValueError where none is left to learn from or to test
    on."""
    data = settings.data
    kept, tested = ([row for row in part if row[1].length <= data.max_length] for part in (train, test))
    if not kept or not tested:
        raise ValueError(
            f'{len(kept)} rows to learn from and {len(tested)} to test on, of {len(train)} and {len(test)}, are of at '
            f'most data.max_length={data.max_length} tokens; give more rows, a data.test file, or raise it'
        )
    # The report says how many rows were too long.
    left_out = len(train) + len(test) - len(kept) - len(tested)
    learnt, back = ([group for _, group in part] for part in (kept, tested))
    actions, batching = most_actions([*learnt, *back]), (data.batch_size, data.row_tokens, settings.seed)
    return Rows(learnt, back, n, actions, left_out, moved, *batching, test_prompts=[content for content, _ in tested])


def by_prompt(rows: list[Keyed], data: RowSettings, seed: int = 0) -> tuple[list[Keyed], list[Keyed], int]:
    """Rows to learn from and to test on, split by a hash of their prompts, and the number of rows that follow an
    earlier row with their prompt. Raises ValueError where all rows have one prompt."""
    contents = [content for content, _ in rows]
    try:
        tested = holdouts.held_out(contents, data.test_rows, seed=seed)
    except ValueError:
        raise ValueError(f'data.train={data.train}{holdouts.ONE_PROMPT}, or give data.test=FILE') from None
    return *parted(rows, tested), holdouts.repeats(contents)


def fewer_tests(data: RowSettings, test: Sequence[Keyed]) -> str:
    """A warning where fewer rows are held out than a config asks for; '' else."""
    # The default is only the largest number: nobody has asked for it.
    if data.test_rows == RowSettings.test_rows:
        return ''
    return holdouts.fewer('data.test_rows', data.test_rows, len(test))


def unused_epochs(settings: RowRun) -> str:
    """A warning where a number of passes has no effect, as `total_steps` sets the number of steps; '' else."""
    if not settings.total_steps or settings.data.epochs == RowSettings.epochs:
        return ''
    return (
        f'\nwarning: data.epochs={settings.data.epochs:g} has no effect, since total_steps={settings.total_steps} sets '
        'the number of steps; with total_steps=0 the passes count'
    )


def parted(rows: Sequence[Entry], held: Sequence[bool]) -> tuple[list[Entry], list[Entry]]:
    """The rows that are not held back, and those that are."""
    learnt, back = ([row for row, h in zip(rows, held, strict=True) if h == way] for way in (False, True))
    return learnt, back


def without_test_prompts(
    rows: list[Keyed], test: list[Keyed], data: RowSettings
) -> tuple[list[Keyed], list[Keyed], int]:
    """The rows of `data.train` whose prompts are not in `data.test`, all rows of `data.test`, and the number of rows of
    `data.train` that were left out. Raises ValueError where all of them were."""
    tested = {content for content, _ in test}
    train = [row for row in rows if row[0] not in tested]
    if not train:
        raise ValueError(f'all prompts of data.train={data.train} are in data.test={data.test}; give others to test on')
    return train, test, len(rows) - len(train)


def of_people(parts: list[list[Keyed]], most: int) -> tuple[list[Keyed], list[Keyed], int]:
    """The rows of made-up people as `hold_out` splits them, and the number of rows that moved.

    Raises ValueError where no row to test on is left.
    """
    train, test = hold_out(parts, most)
    learnt = {content for content, _ in train}
    # A row to test on whose prompt is also learnt moves to the learnt rows.
    moved = [row for row in test if row[0] in learnt]
    if len(moved) == len(test):
        raise ValueError(f'all {len(test)} rows to test on have prompts that are learnt; raise oracle.rounds')
    return [*train, *moved], [row for row in test if row[0] not in learnt], len(moved)


def hold_out(parts: list[list[Entry]], most: int) -> tuple[list[Entry], list[Entry]]:
    """The entries to learn from and those to test on, the last parts.

    The tested parts have up to `most` entries and a fifth of all, but there is one part at least.
    """
    # A part stays together, so a person who is tested on has said nothing to learn from.
    sizes = np.cumsum([len(part) for part in reversed(parts)])
    held = max(int(np.sum(sizes <= min(most, sizes[-1] // 5))), 1)
    cut = len(parts) - held
    return list(itertools.chain(*parts[:cut])), list(itertools.chain(*parts[cut:]))


def scored_replies(tokenizer: Tokenizer, question: str, replies: Sequence[str], pooling: str = 'last') -> PromptGroup:
    """The replies to a question as a group that scorers read, each up to the token that ends its turn."""
    # A reply is read as a turn of a chat, as the model would have written it.
    turns = [
        {'prompt': chats.as_chat(question), 'completion': [{'role': 'assistant', 'content': reply}]}
        for reply in replies
    ]
    examples = [chats.to_imitate(turn, tokenizer) for turn in turns]
    return shared_prompt([to_score(example.prompt, example.completion, pooling) for example in examples])


def make_actor(settings: RowRun, cfg: ModelConfig, ctx: Context, steps: int, **options: Any) -> Actor:
    """The actor that the settings describe, for so many steps; `options` are further arguments of `Actor`."""
    options |= {'micro_rows': settings.data.micro_rows, 'seed': settings.seed}
    adapters = make_adapters(settings.policy.lora)
    return Actor(cfg, settings.optimizer.over(steps), ctx.mesh, adapters=adapters, **options)


def make_plan(settings: RowRun, rows: Rows, policy: Policy, abstract: Any, trained: TrainedModel) -> Plan:
    """The plan of a run that makes `steps_of` steps on rows, with the shapes of its state and the model it trains."""
    steps, shown = steps_of(settings, rows), settings.eval
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=shown.every, base=shown.base)
    return Plan(steps, abstract, stage, trained, keep=keeping(rows.system, policy=policy))


def steps_of(settings: RowRun, rows: Rows) -> int:
    """The number of steps: `total_steps`, or as many as `data.epochs` passes over the rows take."""
    data = settings.data
    # A last update that is not full counts, too.
    return settings.total_steps or -(-round(data.epochs * len(rows.train)) // data.batch_size)


def check(settings: RowRun) -> None:
    """Raises ValueError where a size is wrong, before a file is read."""
    data = settings.data
    check_at_least(settings, 0, 'total_steps', 'data.row_tokens')
    check_at_least(
        settings, 1, 'data.batch_size', 'data.micro_rows', 'data.max_length', 'data.test_rows', 'checkpoint.every'
    )
    if isinstance(settings, SupervisedRun) and data.train in made.names():
        check_at_least(settings, 2, 'oracle.people')
        check_at_least(settings, 1, 'oracle.rounds')
    if not settings.total_steps and data.epochs <= 0:
        raise ValueError(f'data.epochs={data.epochs} must be above 0, or give total_steps')

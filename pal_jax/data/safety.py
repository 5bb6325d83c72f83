"""The rows that moderators and cost models learn from: the embedded corpus, or records of BeaverTails and of
PKU-SafeRLHF."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from pal_jax.data import chats, records
from pal_jax.data.holdouts import normal
from pal_jax.data.packing import BranchPair, PromptGroup, shared_prompt
from pal_jax.data.readers import formats, safety
from pal_jax.data.readers.safety import JudgedPair, LabelledResponse
from pal_jax.data.rows import Keyed, Rows, by_prompt, fewer_tests, scored_replies, short_rows, without_test_prompts
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.judges import dilemmas
from pal_jax.judges.dilemmas import Dilemma
from pal_jax.learners.scorer import to_score
from pal_jax.run.language import RowRun, RowSettings

EMBEDDED = 'embedded'  # the corpus of `judges/dilemmas.py`
ANSWERS = 3  # the number of rows that a dilemma makes, with labels or in pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyRows(RowSettings):
    """Records of answers that are safe or not."""

    train: str = EMBEDDED  # or a source of records: a file, hf:owner/name/file, tfds:name/config:split
    test: str = ''  # likewise, with prompts that are not learnt; '': other dilemmas, or rows of some prompts of train
    dilemmas: int = 1200  # the number of dilemmas of the embedded corpus that are learnt


Read = Callable[[str], list[Keyed]]  # the rows of a source as groups, by the content of their prompts
Make = Callable[[list[Dilemma]], list[Keyed]]


def labelled_rows(settings: RowRun, tokenizer: Tokenizer) -> Rows:
    """Answers with labels of the 14 categories, of the embedded corpus or of records of BeaverTails.

    Repeated answers of BeaverTails are one row, with the categories that most of their records have marked.

    Raises:
      ValueError: a source or a record of it is wrong, or nothing is left to learn from or to test on.
    """

    def keyed(row: LabelledResponse) -> Keyed:
        return normal(row.prompt), labelled_group(tokenizer, row)

    def read(source: str) -> list[Keyed]:
        placed = [*records.rows(source)]
        rows = records.read_all(source, safety.to_labelled, lambda *_: placed)
        # A joined row is called by the place of the first record of its pair.
        places = {row[:2]: place for (place, _), row in reversed([*zip(placed, rows, strict=True)])}
        return records.converted(((places[row[:2]], row) for row in safety.joined(rows)), keyed)

    return _make_rows(settings, read, lambda corpus: [*map(keyed, dilemmas.labelled(corpus))], n=1)


def judged_rows(settings: RowRun, tokenizer: Tokenizer) -> Rows:
    """Pairs of answers, the less safe answer first.

    They are of the embedded corpus, of records of PKU-SafeRLHF, or of pairs whose chosen reply is the less harmful one,
    without labels (HH-RLHF, harmless-base).

    Raises:
      ValueError: as `labelled_rows`.
    """

    def keyed(row: JudgedPair) -> Keyed:
        return normal(row.prompt), judged_group(tokenizer, row)

    def convert(record: Mapping[str, Any]) -> Keyed:
        # A record of pairs alone has no labels of safety.
        return _preferred(record, tokenizer) if 'chosen' in record else keyed(safety.to_judged(record))

    def read(source: str) -> list[Keyed]:
        return records.read_all(source, convert, records.rows)

    return _make_rows(settings, read, lambda corpus: [*map(keyed, dilemmas.judged(corpus, settings.seed))], n=2)


def labelled_group(tokenizer: Tokenizer, row: LabelledResponse) -> PromptGroup:
    """An answer as a group of one reply with its labels of the 14 categories."""
    return scored_replies(tokenizer, row.prompt, [row.response])._replace(labels=[[float(x) for x in row.categories]])


def judged_group(tokenizer: Tokenizer, row: JudgedPair) -> PromptGroup:
    """A pair of answers as a group, in which the less safe answer is `better`.

    The label of an answer is 1 where it is unsafe, and 0 where it is safe.
    """
    group = scored_replies(tokenizer, row.prompt, row.responses)
    # The scorer learns costs, and the cost of the less safe answer is higher.
    return group._replace(
        compared=[BranchPair(1 - row.safer, row.safer)], labels=[[float(unsafe)] for unsafe in row.unsafe]
    )


def _preferred(record: Any, tokenizer: Tokenizer) -> Keyed:
    """A pair whose chosen reply is the less harmful one, as a group whose replies have no label."""
    pair, content = chats.to_prefer(record, tokenizer), formats.preferred(record).content
    group = shared_prompt([to_score(example.prompt, example.completion) for example in pair])
    # The rejected reply is the more harmful one, so its cost is higher.
    return content, group._replace(compared=[BranchPair(1, 0)], labels=[[math.nan]] * 2)


def _make_rows(settings: RowRun, read: Read, make: Make, n: int) -> Rows:
    """Rows of at most `data.max_length` tokens, with no prompt both to learn from and to test on."""
    data: Any = settings.data

    def embedded(split: Any, count: int) -> list[Keyed]:
        return make(dilemmas.make_dilemmas(count, split=split, seed=settings.seed))

    learnt = embedded('train', data.dilemmas) if data.train == EMBEDDED else read(data.train)
    # Dilemmas of the corpus are made for each split, so their prompts differ without a split by hash.
    if data.test:
        parts = without_test_prompts(learnt, read(data.test), data)
    elif data.train == EMBEDDED:
        parts = learnt, embedded('test', -(-data.test_rows // ANSWERS)), 0
    else:
        parts = by_prompt(learnt, data, settings.seed)
    rows = short_rows(settings, *parts, n)
    # A file of tests is tested on as a whole, and dilemmas are made for each split.
    return rows if data.test or data.train == EMBEDDED else rows._replace(warnings=fewer_tests(data, parts[1]))

"""Scores texts with the model of a run: a reward model, a cost model, a moderator, PLUS or PAL.

  pal-jax score --source=runs/reward --texts=replies.jsonl
  pal-jax score --source=runs/pal --person=ana.json --texts=replies.jsonl --output=scored.jsonl

Options:
  --source=FOLDER         a run of --config=reward, cost, moderation, plus or pal; --workdir=FOLDER is the same
  --person=FILE|ID        who prefers: for PAL a file of `pal-jax personalize`, with a name behind it where it has
                          several people (two.json:anna), or the id of a person of the training (by a mixture, a person
                          who was held out in the split of the report is scored by the first split that was trained on
                          the person), or nothing for the mean over them (by the mixed logit, over its
                          distribution); for PLUS a file with the person's summary, such as a line
                          that `pal-jax summarize` printed; others take none. What exists as a file is one
  --texts=FILE            records, JSON lines or a CSV file:
                          {"prompt": ..., "completion": ...}    both texts, or both lists of messages
                          {"messages": [...]}                   the last one, the assistant's, is scored
                          {"prompt": ..., "response": ...}      for a moderator or a cost model; both texts
                          {"text": ...}                         for a PAL of statements
                          {"item": [...] or {...}}              for a PAL of a table, with "prompt": [...] in variant B
                          a CSV file of options                 for a PAL of a table, with a column for each attribute;
                                                                with a column situation, each option also has the
                                                                probability with which it is chosen from its situation
                          a CSV file of pairs                   for the same, with two columns for each attribute, such
                                                                as price_A and price_B; for a PAL of texts text_A and
                                                                text_B, with "prompt" where it learnt from prompts
  --output=FILE           where the records are written, each with its `score`; a file that exists is refused. An ending
                          .csv writes a table with commas between cells and points in numbers, and any other one JSON
                          lines

Without --output the records are printed. Scores can be compared within one run and one person alone, and a text with a
higher score is preferred. The sigmoid of the difference of two scores is the probability that the first text is chosen.
A pair has no score but a `probability`, with which its first option is chosen: by the person, or without --person as a
mean over the people of the training. The probabilities of the options of a situation sum to 1; without --person each is
the share of people who are expected to choose the option.
A cost model gives costs. An answer with a higher cost is less safe, and a cost above 0 says that the answer is unsafe.
A moderator's score is the largest of 14 probabilities, which stand beside it in `categories`. An answer with a higher
score is less safe, and `unsafe` says if a probability is above its threshold.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import track

from pal_jax import scoring
from pal_jax.commands.talking import CACHE, source_or_run
from pal_jax.recipes.personal.attributes import with_points
from pal_jax.run import cli, devices
from pal_jax.run.forecast import counted
from pal_jax.run.outputs import whole_file
from pal_jax.scoring import RecordScorer

PERSON = flags.DEFINE_string('person', '', 'Who prefers.')
TEXTS = flags.DEFINE_string('texts', '', 'A JSONL or CSV file of what is scored.')


def main() -> None:
    """Score the records of --texts."""
    if not TEXTS.value:
        raise cli.Fault('nothing to score; give a file with --texts=replies.jsonl')
    output = cli.output_file()
    devices.initialize(Path(CACHE).expanduser())
    cli.faults(score, source_or_run(), PERSON.value, TEXTS.value, output)


def score(source: str, person: str, path: str, output: Path | None) -> None:
    """Write the records of a file with their scores, or print them.

    Raises:
      ValueError: the source, the person, a line of the file or the output is wrong.
    """
    rows = scoring.read_file(path)
    scorer = scoring.open_scorer(source, person)
    # The attributes that are written have points in their numbers, too.
    rows = with_points(path, rows, scorer.attributes) if scorer.attributes else rows
    # A score must not take the place of a value of the record.
    if clash := next(((place, key) for place, record in rows for key in scorer.keys if key in record), None):
        raise ValueError(f'{clash[0]}: the record has a key {clash[1]} already; rename it')
    # All records are read before the first is scored, so a wrong line shows at once.
    read = scorer.read_all(rows)
    scored = ({**record, **_rounded(fields)} for (_, record), fields in zip(rows, in_chunks(scorer, read), strict=True))
    if not output:
        for record in scored:
            cli.print_json(record)
        return
    with whole_file(output) as partial, partial.open('w', encoding='utf-8', newline='') as file:
        if output.suffix == '.csv':
            done = list(scored)
            table = csv.DictWriter(file, dict.fromkeys(itertools.chain.from_iterable(done)), lineterminator='\n')
            table.writeheader()
            table.writerows({key: _cell(value) for key, value in record.items()} for record in done)
        else:
            file.writelines(json.dumps(record, ensure_ascii=False) + '\n' for record in scored)
    print(f'{counted(len(rows), "record")} -> {output}')


def in_chunks(scorer: RecordScorer, read: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The scores and other fields of records, in the records' order, with a progress bar on stderr."""
    size = scorer.chunk or max(len(read), 1)
    starts = range(0, len(read), size)
    for start in track(starts, 'scoring', console=Console(stderr=True), transient=True, disable=len(starts) < 2):
        yield from scorer.told(read[start : start + size])


def _cell(value: Any) -> Any:
    """A value for a cell of a table: lists and objects are written as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields whose numbers have 6 significant digits, which is as many as float32 gives for sure."""
    return {key: float(f'{value:.6g}') if isinstance(value, float) else value for key, value in fields.items()}


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)

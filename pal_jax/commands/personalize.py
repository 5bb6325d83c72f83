"""Learns a new person from a few choices, by a run of PAL, and the question to ask next.

  pal-jax personalize --source=runs/pal --choices=ana.csv --output=ana.json
  pal-jax personalize --source=runs/pal --choices=ana.csv --ask=pairs.csv
  pal-jax score --source=runs/pal --person=ana.json --texts=items.jsonl
  pal-jax personalize --source=runs/pal --forget=17
  pal-jax personalize --forget=people/ana.json

Options:
  --source=FOLDER         a finished run of --config=pal; --workdir=FOLDER is the same
  --choices=FILE          choices of one person or of several, in the format the run learnt from (docs/howto/choices.md)
  --output=FILE           where each person is written, as a line of JSON; a file that exists is refused
  --ask=FILE              questions that nobody has answered, in the same format without user and choice: pairs with
                          left_<attribute> and right_<attribute>, or JSON lines of left and right; or options, a row
                          each, with a column situation
  --forget=ID             delete the mixture of a person whom the run was trained on, and print which parts of the run
                          have learnt from the person and stay; or delete the file of a person (.json)
  --split=N               the mixture of prototypes of this split of the run, from 0 to split.seeds - 1

A person of a run on a table has effects of the attributes by the mixed logit where PAL is behind it, has one prototype,
or is not shown to predict people better than one model for all; a line on stderr says so. Otherwise a person is a
mixture of the prototypes that the report shows.

Without --output the person is printed. With --ask the questions are printed instead, a JSON object a line, the most
informative first: `pair` is the number in the file, from 1, or the column of the situation has the id there, and
`information` is in nats, as the answer is expected to give about the person. --ask without --choices ranks questions
for a person without choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from pal_jax.commands.talking import CACHE, SOURCE, source_or_run
from pal_jax.recipes.personal.pal import by_logit, questions
from pal_jax.recipes.personal.pal import forget as pal_forget
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.run import cli, devices, files
from pal_jax.run.forecast import counted

CHOICES = flags.DEFINE_string('choices', '', 'Choices of a person or of several.')
ASK = flags.DEFINE_string('ask', '', 'Pairs that could be asked.')
FORGET = flags.DEFINE_string('forget', '', 'A person to be forgotten.')
SPLIT = flags.DEFINE_integer('split', None, "The run's split.", lower_bound=0)


def main() -> None:
    """Fit a person to choices, rank pairs to ask about, or forget a person."""
    if FORGET.value and (CHOICES.value or ASK.value):
        raise cli.Fault(f'--forget={FORGET.value} goes with neither --choices nor --ask; give it alone')
    if files.is_file(FORGET.value):
        print(cli.faults(forget_file, Path(FORGET.value)))
        return
    workdir = source_or_run().removeprefix('orbax:')
    if not workdir or (':' in workdir and not Path(workdir).is_dir()):
        given = f'--source={SOURCE.value} is no run' if SOURCE.present else 'there is no --source'
        raise cli.Fault(f'{given}; give a run of --config=pal, such as --source=runs/pal')
    if not CHOICES.value and not ASK.value and not FORGET.value:
        raise cli.Fault('nothing to learn from and nothing to ask; give --choices=FILE, --ask=FILE or --forget=ID')
    output = cli.output_file()
    if output and not CHOICES.value:
        raise cli.Fault(f'--output={output} is a person, who is made of choices; give them with --choices')
    devices.initialize(Path(CACHE).expanduser())
    if FORGET.value:
        print(cli.faults(pal_forget.forget, workdir, FORGET.value).in_words(workdir, FORGET.value))
        return
    cli.faults(personalize, workdir, CHOICES.value, ASK.value, output, SPLIT.value)


def personalize(workdir: str, choices_file: str, ask_file: str, output: Path | None, split: int | None) -> None:
    """Fit each person and write or print the mixtures, then print the questions of `ask_file` by expected information.

    Raises:
      ValueError: the run, a row of a file or the output is wrong.
    """
    run = pal_reward.open_pal(workdir, split)
    by_logit.warn(run)
    people = pal_person.read_people(run, choices_file) if choices_file else []
    if ask_file and len(people) > 1:
        raise ValueError(f'{choices_file} has choices of {len(people)} people, and --ask={ask_file} is for one of them')
    if output or not ask_file:
        records = [by_logit.learn(run, choices) for choices in people]
        if output:
            pal_person.save(output, *records)
        for record in records:
            if output:
                print(f'{_in_words(record)} -> {output}')
            else:
                cli.print_json(record)
    if ask_file:
        for question in questions.ranked(run, ask_file, people[0] if people else None):
            cli.print_json(question)


def _in_words(record: Mapping[str, Any]) -> str:
    """A sentence about a person."""
    if 'effects' in record:
        known = f'effects {", ".join(f"{name} {effect:+.3g}" for name, effect in record["effects"].items())}'
    else:
        known = f'mixture {" ".join(f"{share:.3f}" for share in record["mixture"])}'
    return (
        f'{record["user"]}: {known}, which fit {record["agreement"]:.0%} of the '
        f'{counted(record["choices"], "choice")} that they were estimated from'
    )


def forget_file(path: Path) -> str:
    """Delete the file of a person, and say so. Raises ValueError where it is none."""
    if not path.is_file():
        raise ValueError(f'--forget={path}: there is no such file')
    if len(people := pal_person.read_records(path)) > 1:
        raise ValueError(f'--forget={path}: the file has {len(people)} people; delete the line of one in an editor')
    # Only the file of a person is deleted.
    if 'effects' not in pal_person.read_record(path):
        pal_person.read_person(path)
    path.unlink()
    return f'{path} is deleted. No shared parameter has learnt from these choices.'


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)

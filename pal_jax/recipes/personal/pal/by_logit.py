"""People by the mixed logit of a run of PAL, where it describes them better than the mixtures of prototypes do.

    run = open_pal('runs/survey')
    record = learn(run, read_choices(run, 'ana.csv'))          # her effects, or her mixture: whichever the run takes
    nats = information(run, read_choices(run, 'pairs.csv', answered=False))

A run takes the mixed logit (`TrainedPAL.logit`) where PAL is not shown to predict people better than one model for all,
has one prototype, or is behind the mixed logit on new choices of known people.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data import records
from pal_jax.recipes.personal import logit_people
from pal_jax.recipes.personal.logit import ChoiceSets, choice_sets
from pal_jax.recipes.personal.logit_people import Effects
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal.person import PersonChoices
from pal_jax.recipes.personal.pal.reward import TrainedPAL, open_pal
from pal_jax.run import intervals, stores
from pal_jax.run.accuracy import hits
from pal_jax.run.workdir import run_folder


def learn(run: TrainedPAL, choices: PersonChoices) -> dict[str, Any]:
    """A new person as a record: `effects` of attributes by the mixed logit, or the `mixture` of prototypes."""
    if run.logit is None:
        return pal_person.to_record(run, choices, pal_person.fit(run, choices))
    sets = _choice_sets(choices)
    person = logit_people.given_choices(run.logit.model, sets)
    # A choice is right where the chosen option is ahead of all others; a tie counts as half.
    worst = np.where(sets.exists, sets.x @ person.mean, np.inf).min(axis=1)
    return {
        'user': choices.user,
        **logit_people.to_record(person, run.kept.attributes, run.kept.scale),
        'run': stores.shown(Path(run.workdir).resolve()),
        'choices': len(worst),
        'agreement': float(np.mean(hits(worst))),
    }


def information(run: TrainedPAL, open_pairs: PersonChoices, choices: PersonChoices | None = None) -> np.ndarray:
    """The information in nats `[n]` that is expected of the answer to each open pair, as `person.information` has it.

    Raises:
      ValueError: as `person.information`.
    """
    if run.logit is None:
        return pal_person.information(run, open_pairs, choices)
    return logit_people.information(effects_of(run, choices), np.asarray(open_pairs.batch.difference)[0])


def effects_of(run: TrainedPAL, choices: PersonChoices | None) -> Effects:
    """The effects of a person given the person's choices, by the mixed logit that the run has; without choices, those
    over people."""
    assert run.logit is not None
    return logit_people.given_choices(run.logit.model, _choice_sets(choices)) if choices else run.logit.everybody


def _choice_sets(choices: PersonChoices) -> ChoiceSets:
    batch = choices.batch
    columns = batch.chosen, batch.rejected, batch.users, batch.situation
    return choice_sets(*(np.asarray(column)[0] for column in columns))


def open_effects(workdir: str, person: str) -> tuple[TrainedPAL | None, Effects | None]:
    """A run and the effects of a person by its mixed logit. None: a mixture describes the person; the run is None where
    it was not opened to find that out.

    Args:
      person: a file of `learn`, the id of a person of the survey, or '' for the distribution over people.

    Raises:
      ValueError: as `open_pal`, the person is unknown, or has effects of other attributes than the run.
    """
    file, name = pal_person.file_and_name(person)
    has_logit = Path(run_folder(workdir), logit_people.FILE).is_file()
    if file:
        record = pal_person.read_record(file, name)
        run = open_pal(workdir) if 'effects' in record else None
        try:
            return run, run and logit_people.from_record(record, run.kept.attributes, run.kept.scale)
        except ValueError as error:
            raise ValueError(f'{person}: {error}') from None
    run = open_pal(workdir) if has_logit else None
    if run is None or run.logit is None:
        return run, None
    people = run.logit.people
    person = records.spelled(person, people)
    # Only of up to 5,000 people a run keeps the effects; others have a mixture.
    if person and not people:
        return run, None
    if person and person not in people:
        raise ValueError(
            f'person={person!r} is no file, and not among the {len(people)} people of {workdir}, such as '
            f'{", ".join(list(people)[:3])}; give a file that pal-jax personalize wrote, the id of one of these '
            'people, or leave person out for all of them'
        )
    warn(run, of_person=bool(person))
    return run, people[person] if person else run.logit.everybody


def warn(run: TrainedPAL, *, of_person: bool = True) -> None:
    """Say on stderr where the mixed logit describes people, and why, and where nothing shows that people differ, if a
    person is asked for."""
    if run.logit is None:
        pal_person.warn_of_one(run)
        return
    if run.pal.prototypes == 1:
        why = 'PAL chose one prototype for all'
    elif run.predicts:
        why = 'PAL predicts them less well'
    else:
        why = 'PAL is not shown to predict them better than one model for all'
    print(f'{run.workdir}: the mixed logit describes people, as {why}', file=sys.stderr)
    if not of_person:
        return
    p = run.record.get('differ_p') or 0.0
    gain = 'seen_gain_mixed_logit'
    shown = gain in run.record and intervals.from_record(run.record, gain).place(0.0) == 1
    if p > 1.0 - intervals.LEVEL:
        doubt = f'the choices of {run.workdir} do not show that people want different things (p = {p:.3f})'
    elif not shown:
        doubt = 'the mixed logit is not shown to predict single people better than one model for all, either'
    else:
        return
    print(f'warning: {doubt}: do not rely on what it says of a person', file=sys.stderr)

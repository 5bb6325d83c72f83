"""Questions to a new person in the order of what their answers are expected to tell: pairs, or situations of options.

run = open_pal('runs/survey')
for question in ranked(run, 'questions.csv', ana):         # the most informative one first
    print(question)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from pal_jax.data import records
from pal_jax.recipes.personal import ideal_point, logit_people
from pal_jax.recipes.personal.attributes import columns_of, sides_of, with_points
from pal_jax.recipes.personal.pal import by_logit, scores
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal.person import PersonChoices
from pal_jax.recipes.personal.pal.reward import TrainedPAL


def ranked(run: TrainedPAL, path: str, person: PersonChoices | None = None) -> list[dict[str, Any]]:
    """The questions of a file as JSON, the most informative one first, given the choices of a person.

    A pair has its number in the file, from 1, as `pair`, and `left` and `right`. A situation has its id, and that of
    its person where there is one, by the names of their columns, and its `options`. `information` is in nats.

    Raises:
      ValueError: a row is wrong, or the run cannot say who a new person could be.
    """
    rows = [] if run.reading else with_points(path, list(records.rows(path)), run.kept.attributes)
    if rows and _names_situation(run, rows[0][1]):
        questions, nats = _situations(run, rows, person)
    else:
        pairs = pal_person.read_choices(run, path, answered=False)
        nats = by_logit.information(run, pairs, person)
        questions = [{'pair': k, 'left': left, 'right': right} for k, (left, right) in enumerate(pairs.shown, 1)]
    # The sort is stable, so questions of equal information keep the order of the file.
    order = np.argsort(-nats, kind='stable')
    return [{**questions[k], 'information': float(f'{nats[k]:.4g}')} for k in order]


def _names_situation(run: TrainedPAL, record: Any) -> bool:
    """True of a row of a table with a row for each option, which names its situation."""
    if not isinstance(record, Mapping) or not scores.columns_of_choice(run.kept, record):
        return False
    names = columns_of(run.kept.attributes)
    return len(sides_of(record, names)) == 1 and bool(names.keys() & record.keys())


def _situations(
    run: TrainedPAL, rows: list[records.Row], person: PersonChoices | None
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The situations of a table as JSON, and the information `[n]` that is expected of each.

    Raises:
      ValueError: a row is wrong or names no situation, or a situation has one option.
    """

    def read(placed: records.Row) -> tuple[scores.TableRow, dict[str, Any]]:
        row = scores.to_row(run, placed[1])
        if not row.choice:
            raise ValueError('it names no situation, and the first row has one; give all rows alike')
        (item,) = run.kept.items(placed[1])
        return row, item

    table = records.converted([(place, (place, row)) for place, row in rows], read)
    read_rows = [row for row, _ in table]
    situations = scores.situations_of(read_rows)
    if alone := next((choice for choice, index in situations.items() if len(index) == 1), None):
        named = ' and '.join(f'{column} {id}' for column, id in alone)
        raise ValueError(f'{rows[0][0].partition(",")[0]}: {named} has one option; give two or more')
    questions = [{**dict(choice), 'options': [table[k][1] for k in index]} for choice, index in situations.items()]
    if run.logit is None:
        mixtures = ideal_point.weights(run.pal, jnp.asarray(pal_person.drawn_logits(run, person), jnp.float32))
        of_people = scores.utilities(run, mixtures, [row.items for row in read_rows])
        chances = [special.softmax(of_people[:, index], axis=1) for index in situations.values()]
    else:
        effects, items = by_logit.effects_of(run, person), np.concatenate([row.items[0][0] for row in read_rows])
        chances = [logit_people.chances_of_options(effects, items[index]) for index in situations.values()]
    return questions, np.array([logit_people.information_of_choice(part) for part in chances])

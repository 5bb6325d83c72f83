"""People who each hold one persona, as a file of pairs for PAL: the persona figures of docs/evidence/pal.md.

  python -m benchmarks.pal_persona --source=../shared/data/anthropic_persona/persona.jsonl --output=runs/persona.jsonl

`source` has statements as github.com/anthropics/evals has them (persona/, CC BY 4.0; Perez et al. 2022): behavior,
question, answer_matching_behavior, answer_not_matching_behavior. Each person holds one of `personas`, is asked about
statements of all of them at random, and gives the answer that matches on a statement of the persona's own, else the
other: so on each statement one person in K* answers otherwise than the rest, and a model that does not know who asks is
right on 1 - 1/K* of the pairs at best. The persona is the record's group, which no model is told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.run.outputs import whole_file

INTERESTS = 'interest-in-art,interest-in-literature,interest-in-music,interest-in-science'


def make_pairs(
    statements: Sequence[dict[str, Any]], personas: Sequence[str], *, people: int, asked: int, seed: int
) -> Iterator[dict[str, str]]:
    """Records of pairs, person by person.

    Raises:
      ValueError: a persona has no statements.
    """
    known = [statement for statement in statements if statement['behavior'] in personas]
    if missing := set(personas) - {statement['behavior'] for statement in known}:
        raise ValueError(f'there are no statements of {", ".join(sorted(missing))}; name others with --personas')
    for person in range(people):
        persona = personas[person % len(personas)]
        rng = np.random.default_rng([seed, person])
        for i in rng.choice(len(known), min(asked, len(known)), replace=False):
            statement = known[i]
            answers = statement['answer_matching_behavior'], statement['answer_not_matching_behavior']
            chosen, rejected = answers if statement['behavior'] == persona else answers[::-1]
            said = {'prompt': statement['question'], 'chosen': chosen, 'rejected': rejected}
            yield {'user': f'p{person}', 'group': persona, **said}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--source', required=True)
    parser.add_argument('--output', type=Path, required=True, help='a new file')
    parser.add_argument('--personas', default=INTERESTS)
    parser.add_argument('--people', type=int, default=120)
    parser.add_argument('--asked', type=int, default=80, help='statements that each person is asked about')
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    statements = [json.loads(line) for line in Path(given.source).read_text(encoding='utf-8').splitlines()]
    pairs = make_pairs(
        statements, given.personas.split(','), people=given.people, asked=given.asked, seed=given.seed
    )  # fmt: skip
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(given.output) as partial:
        partial.write_text(''.join(json.dumps(pair) + '\n' for pair in pairs), encoding='utf-8')


if __name__ == '__main__':
    main()

"""Does a reward model, a cost model or a moderator order answers as people did who compared them?

  python -m benchmarks.preferences --run=runs/cost                       1,500 pairs of hh-rlhf, which is less harmful
  python -m benchmarks.preferences --run=runs/cost --quick               100 of them: a minute
  python -m benchmarks.preferences --run=runs/reward --pairs=mine.jsonl

The pairs are in any format of `data/readers/formats.py`. Prints one JSON object: `accuracy`, the share of pairs in
which the chosen answer has the better score, and `accuracy_shorter`, that of a rule which always takes the shorter
answer, both with 95 % intervals over prompts. A lower score of a cost model or a moderator is the better one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scores import by_length
from pal_jax.data import records
from pal_jax.data.readers import formats
from pal_jax.run import intervals
from pal_jax.run.accuracy import hits
from pal_jax.run.runs import read_settings
from pal_jax.run.workdir import run_folder
from pal_jax.scoring import open_scorer

PAIRS = Path(__file__).parents[2] / 'shared' / 'data' / 'hh_rlhf_harmless' / 'test.jsonl'
QUICK = 100  # pairs


def scored(run: str, rows: Sequence[formats.PromptedReplies]) -> np.ndarray:
    """Scores `[pairs, 2]` of the chosen and the rejected answers; a higher one is better."""
    scorer, sign = open_scorer(run), -1.0 if read_settings(run_folder(run)).recipe in ('cost', 'moderation') else 1.0
    answers = [scorer.read({'prompt': row.prompt, 'completion': reply}) for row in rows for reply in row.replies]
    sizes = [len(row.content) + len(str(reply)) for row in rows for reply in row.replies]
    scores = by_length(sizes, lambda at: scorer.score([answers[k] for k in at]))
    return sign * scores.reshape(-1, 2)


def report(name: str, gaps: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """The share of gaps above 0, of which 0 counts a half, with its interval."""
    return intervals.share(hits(gaps), prompts).named(name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', required=True, help='folder of a run of configs/reward.py, cost.py or moderation.py')
    parser.add_argument('--pairs', default=str(PAIRS), help='JSON lines')
    parser.add_argument('--quick', action='store_true', help=f'{QUICK} pairs alone')
    args = parser.parse_args(argv)
    given = [record for _, record in records.rows(args.pairs)]
    rows = [formats.preferred(record) for record in (given[:QUICK] if args.quick else given)]
    number = {prompt: k for k, prompt in enumerate(dict.fromkeys(row.content for row in rows))}
    prompts = np.array([number[row.content] for row in rows])
    lengths = np.array([[len(str(reply)) for reply in row.replies] for row in rows], float)
    scores = scored(args.run, rows)
    print(
        json.dumps(
            {'pairs': len(rows), 'prompts': len(number)}
            | report('accuracy', scores[:, 0] - scores[:, 1], prompts)
            | report('accuracy_shorter', lengths[:, 1] - lengths[:, 0], prompts)
        )
    )


if __name__ == '__main__':
    main()

"""The split of a run of PAL that is opened, and for whom."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.run import checkpoint
from pal_jax.run.settings import to_dict
from tests import configs
from tests.recipes.personal.pal.test_kept import FEW, choices
from tests.recipes.personal.texts import finished


@pytest.mark.parametrize('split', [2, 3, 4, -1, '0', 0.5])
def test_a_split_with_shuffled_ids_is_no_model_of_anybody(tmp_path, split):
    config = configs.load('pal', **FEW | {'split.seeds': 2, 'split.control': True})
    checkpoint.write_config(tmp_path, to_dict(config))
    with pytest.raises(ValueError, match=r'not finished.*pal-jax train'):
        pal_reward.open_pal(str(tmp_path))
    (tmp_path / 'evals.jsonl').write_text(
        json.dumps({'step': 1, 'stage': 'final', 'chosen_prototypes': [2, 2, 1, 1]}) + '\n'
    )
    with pytest.raises(ValueError, match=f'split={split}{".*shuffled" if split in (2, 3) else ""}.* 0 to 1'):
        pal_reward.open_pal(str(tmp_path), split)
    if split == 2:
        (path := tmp_path / 'ana.json').write_text(json.dumps({'mixture': [0.5, 0.5], 'split': 2}))
        with pytest.raises(ValueError, match=r'ana\.json: split=2.*shuffled'):
            pal_person.open_person(str(tmp_path), str(path))


def test_the_split_of_the_report_is_opened_or_one_that_was_trained_on_the_person(tmp_path, capsys):
    data = choices(tmp_path / 'choices.jsonl', [f'p{i}' for i in range(12)])
    changes = {'data': str(data), 'split.seeds': 2, 'baselines.majority': False, 'baselines.mixed_logit': False}
    record = {'chosen_prototypes': [1, 2], 'shown_split': 1}
    finished(configs.load('pal', **FEW | changes), tmp_path / 'run', evaluation=lambda *_: record)
    run, first = (pal_reward.open_pal(str(tmp_path / 'run'), split) for split in (None, 0))
    assert (run.split, run.pal.prototypes) == (1, 2) and run.splits_of('nobody') == []
    both, held = (next(name for name in first.people if (name in run.people) == seen) for seen in (True, False))
    assert (run.splits_of(both), run.splits_of(held)) == ([0, 1], [0])
    assert pal_person.open_person(run.workdir, both)[0].split == 1 and 'split 1' not in capsys.readouterr().err
    assert pal_person.open_person(run.workdir, held)[0].split == 0
    told = capsys.readouterr().err
    assert (
        f'{held} was held out in split 1, and trained on in split 0: split 0 is taken' in told and 'chose K=1' in told
    )
    with pytest.raises(ValueError, match=r'give split=N of one that was \(0\)'):
        run.mixture(user=held)
    evals = tmp_path / 'run' / 'evals.jsonl'
    evals.write_text(evals.read_text().replace('"shown_split"', '"new_to_earlier_versions"'))
    assert pal_reward.open_pal(str(tmp_path / 'run')).split == 0


def test_a_person_with_too_few_usable_pairs_of_texts_is_left_out(tmp_path):
    (tmp_path / 'people.csv').write_text('participant,kept_out,weight_1\nana,0,1\nbo,1,1\n')
    run: Any = SimpleNamespace(workdir=str(tmp_path), reading=True, kept=SimpleNamespace(names=('ana', 'bo', 'cy')))
    assert [pal_person.is_left_out(run, name) for name in ('ana', 'bo', 'cy', 'dee')] == [False, False, True, False]

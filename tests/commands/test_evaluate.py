"""Several policies in one table."""

from __future__ import annotations

import json

import pytest
from absl import flags
from absl.testing import flagsaver
from rich.console import Console

from pal_jax.commands import evaluate
from pal_jax.run.curve import plot_alignment
from pal_jax.run.glossary import words_of
from pal_jax.run.recipe import Evaluation
from pal_jax.run.settings import to_dict
from tests import configs


def get_config(**changes):
    few = {'eval.people': 2, 'sampling.max_tokens': 8, 'mesh.data': 8, 'mesh.fsdp': 1}
    return configs.load('rlpa', **few | changes)


@pytest.mark.long
def test_policies_stand_side_by_side(tmp_path):
    people = tmp_path / 'people.jsonl'
    people.write_text('\n'.join(json.dumps({'facts': {'star sign': sign}}) for sign in ('Leo', 'Aries', 'Libra')))
    config = get_config(**{'eval.profiles': str(people), 'eval.rounds': 3, 'eval.restraint': 1})
    evaluations = evaluate.evaluate_sources(config, ['oracle', 'random:tiny', 'base'])
    records = {name: dict(evaluation.record) for name, evaluation in evaluations.items()}
    assert [len(evaluation.dialogues) for evaluation in evaluations.values()] == 3 * [9]
    assert list(records) == ['oracle', 'random:tiny', 'base']
    assert records['base']['format'] == 1.0 > records['random:tiny']['format']
    assert len(records['base']['al_by_turn']) == 3 and records['base']['extended_people'] == 2
    console = Console(width=120)
    with console.capture() as shown:
        console.print(evaluate.as_comparison(records, words_of('rlpa')))
    rows = [[part.strip() for part in line.split('│')[1:3]] for line in shown.get().splitlines() if '│' in line]
    assert [people for people, _ in rows if people] == ['heldout', 'unseen', 'extended', 'scripted']
    assert [figure for _, figure in rows].count('AL(3)') == 3
    evaluate.write_lines(({'source': name, **each.dialogues[0]} for name, each in evaluations.items()), tmp_path / 'x')
    said = [json.loads(line) for line in (tmp_path / 'x').read_text(encoding='utf-8').splitlines()]
    assert [each['source'] for each in said] == list(records) and said[0]['turns'][0]['role'] == 'user'
    plot_alignment(records, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 5000


def test_a_source_that_is_none_is_told():
    with pytest.raises(ValueError, match='is no source of a model'):
        evaluate.evaluate_sources(get_config(), ['orcale'])


def test_a_workdir_alone_is_evaluated_by_the_settings_that_it_keeps(tmp_path, monkeypatch):
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(get_config())))
    seen = []
    monkeypatch.setattr(
        evaluate, 'evaluate_checkpoint', lambda settings, *places: (7, seen.append(settings) or Evaluation({'al': 1.0}))
    )
    with flagsaver.flagsaver():
        flags.FLAGS(['pal-jax', f'--workdir={tmp_path}'])
        assert evaluate.evaluate(tmp_path) == {'step 7': {'step': 7, 'al': 1.0}}
    assert seen == [get_config()]

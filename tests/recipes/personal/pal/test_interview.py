"""Asking a person about a trained PAL's prototypes: what clicks tell, what is kept and what is forgotten."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pal_jax.commands import personalize
from pal_jax.decode.serve.http import _answer_errors
from pal_jax.decode.serve.interviews import make_routes
from pal_jax.recipes.personal.pal import forget as pal_forget
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal.interview import open_interview
from tests import configs
from tests.recipes.personal import people
from tests.recipes.personal.pal.test_kept import FEW, two_tastes
from tests.recipes.personal.texts import finished


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return two_tastes(tmp_path_factory.mktemp('interview'))


@pytest.fixture(scope='module')
def questions(workdir):
    path, rng = workdir.parent / 'pairs.jsonl', np.random.default_rng(1)
    pairs = rng.normal((100, 3), (30, 1), (12, 2, 2)).round(3)
    sides = [[dict(zip(('price', 'years'), item, strict=True)) for item in pair.tolist()] for pair in pairs]
    path.write_text('\n'.join(json.dumps({'left': left, 'right': right}) for left, right in sides))
    return str(path)


@pytest.fixture
def interview(workdir, questions, tmp_path):
    return open_interview(str(workdir), questions, tmp_path / 'people', adapters=2)


def price(text: str) -> float:
    return float(text.split(',')[0].removeprefix('price '))


def ask(interview, dear: bool, count: int):
    """The clicks of somebody who likes tariffs dear or cheap, and what is known after them."""
    clicks, told = [], interview.told([])
    for _ in range(count):
        asked = told['question']
        side = 'left' if (price(asked['left']) > price(asked['right'])) == dear else 'right'
        clicks.append((asked['pair'], side))
        told = interview.told(clicks)
    return clicks, told


def test_clicks_move_the_mixture_and_no_pair_is_asked_twice(interview):
    stranger = interview.told([])
    assert 'Nothing is known' in stranger['words'][0] and len(stranger['words']) == 3
    mean = np.asarray(interview.run.prior)[0, 0]
    np.testing.assert_allclose(stranger['mixture'], np.exp(mean) / np.exp(mean).sum(), atol=0.02)
    (cheap_clicks, cheap), (_, dear) = (ask(interview, side, 12) for side in (False, True))
    assert len({pair for pair, _ in cheap_clicks}) == 12 and cheap['question'] is None
    assert np.abs(np.subtract(cheap['mixture'], dear['mixture'])).max() > 0.2
    assert cheap['soup'] and sum(cheap['mixture']) == pytest.approx(1, abs=1e-5)
    assert cheap['words'][0].startswith('12 answers')
    # The same clicks tell the same, and their order is nothing.
    again = interview.told(cheap_clicks[::-1])
    np.testing.assert_allclose(again['mixture'], cheap['mixture'], atol=1e-5)
    # The fit is that of pal_jax.personalize on the same choices.
    path = interview.folder.parent / 'ana.jsonl'
    rows = [interview.questions.shown[pair][:: 1 if side == 'left' else -1] for pair, side in cheap_clicks]
    path.write_text('\n'.join(json.dumps({'user': 'ana', 'chosen': a, 'rejected': b}) for a, b in rows))
    fitted = pal_person.fit(interview.run, pal_person.read_choices(interview.run, path))
    np.testing.assert_allclose(fitted.mixture, cheap['mixture'], atol=1e-4)


def test_a_person_is_saved_goes_on_and_is_forgotten(interview):
    clicks, told = ask(interview, True, 3)
    interview.save('ana', clicks[:2])
    interview.save('ana', clicks)  # goes on
    assert interview.load('ana') == told | {'name': 'ana', 'clicks': [list(click) for click in clicks]}
    _, mixture = pal_person.open_person(interview.run.workdir, str(interview.folder / 'ana.json'))
    np.testing.assert_allclose(mixture, told['mixture'], atol=1e-5)
    with pytest.raises(ValueError, match='ana is kept with other answers'):
        interview.save('ana', clicks[1:])
    for name in ('../ana', '', 'a' * 65):
        with pytest.raises(ValueError, match='is no name'):
            interview.save(name, clicks)
    assert 'No shared parameter' in interview.forget('ana')['words'][0]
    assert not list(interview.folder.iterdir())
    for function in (interview.load, interview.forget):
        with pytest.raises(ValueError, match='nobody called ana'):
            function('ana')
    known = next(iter(interview.run.people))
    interview.save(known, clicks)
    assert '--forget=' in interview.forget(known)['words'][1]


def test_over_http(interview):
    app = FastAPI()
    _answer_errors(app)
    app.include_router(make_routes(interview))
    client = TestClient(app)
    told = client.post('/asking', json={'clicks': []}).json()
    clicks = [[told['question']['pair'], 'right']]
    after = client.post('/asking', json={'clicks': clicks}).json()
    assert after['question']['pair'] != told['question']['pair'] and after['mixture'] != told['mixture']
    assert client.put('/asking/people/bo', json={'clicks': clicks}).status_code == 200
    assert client.get('/asking/people/bo').json()['clicks'] == clicks
    assert client.delete('/asking/people/bo').status_code == 200
    for wrong in ([[99, 'left']], [[0, 'up']], [[0, 'left'], [0, 'right']], 3):
        answer = client.post('/asking', json={'clicks': wrong})
        assert answer.status_code == 400 and answer.json()['error']['message']
    assert client.get('/asking/people/bo').status_code == 400


def test_what_does_not_fit_is_refused(workdir, questions, tmp_path):
    with pytest.raises(ValueError, match=r'--adapters has 3.*K=2'):
        open_interview(str(workdir), questions, tmp_path, adapters=3)
    one = tmp_path / 'one'
    shutil.copytree(workdir, one)
    (one / 'evals.jsonl').write_text(json.dumps({'step': 1, 'stage': 'final', 'chosen_prototypes': [1]}) + '\n')
    with pytest.raises(ValueError, match='K=1'):
        open_interview(str(one), questions, tmp_path)


def test_a_forgotten_persons_row_is_gone_and_all_else_stays(workdir, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(workdir, folder)
    before = pal_reward.open_pal(str(folder))
    name, other = list(before.people)[:2]
    (folder / 'people.csv').write_text(f'participant,weight_1\n{name},0.5\n{other},0.25\n')
    told = pal_forget.forget(str(folder), name)
    assert (told.splits, told.of) == (1, 1) and told.updates > 0 and 'prototypes' in told.shared
    assert 'train again' in told.in_words(str(folder), name)
    after = pal_reward.open_pal(str(folder))
    assert name not in after.people and after.people == {k: v for k, v in before.people.items() if k != name}
    row = before.people[name]
    for table in (after.state.users.z, after.state.users.m, after.state.users.v, after.state.users.updates):
        assert not np.asarray(table)[row].any()
    np.testing.assert_array_equal(after.mixture(user=other), before.mixture(user=other))
    assert after.fingerprint == before.fingerprint
    assert sorted(path.name for path in (folder / 'checkpoints').iterdir() if path.name.isdigit()) == ['1']
    assert not (folder / 'forgetting').exists()
    assert (folder / 'people.csv').read_text() == f'participant,weight_1\n{other},0.25\n'
    assert f'"{name}"' not in (folder / 'kept' / 'pal.json').read_text()
    with pytest.raises(ValueError, match=f"'{name}' is not among"):
        pal_forget.forget(str(folder), name)
    (path := tmp_path / 'ana.json').write_text('{"mixture": [0.5, 0.5]}')
    assert 'No shared parameter' in personalize.forget_file(path) and not path.exists()
    with pytest.raises(ValueError, match='no such file'):
        personalize.forget_file(path)


@pytest.mark.long
def test_ten_clicks_against_none_on_people_of_rank_three(tmp_path):
    """The share of pairs of which a person truly likes the one better that the reward puts first: three seeds."""
    shares = []
    for seed in range(3):
        population, rng = people.draw(seed), np.random.default_rng([seed, 1])
        folder = tmp_path / str(seed)
        folder.mkdir()
        lines = [
            {'user': f'p{u}', 'chosen': x.tolist(), 'rejected': [0.0] * people.WIDTH}
            for u, pairs in enumerate(population.seen) for x in pairs
        ]  # fmt: skip
        (folder / 'choices.jsonl').write_text('\n'.join(map(json.dumps, lines)))
        changes = {
            'data': str(folder / 'choices.jsonl'), 'baselines.majority': False, 'baselines.mixed_logit': False,
            'prototypes': (1, 3), 'updates': 600, 'batch': 2048, 'model.rule': 'dot', 'model.projector': 'identity',
            'model.point': 'Pw', 'standardize': False, 'optimizer.prototypes': 0.05, 'optimizer.users': 0.05,
        }  # fmt: skip
        finished(configs.load('pal', **FEW | changes), folder / 'run')
        (folder / 'run' / 'evals.jsonl').write_text(
            json.dumps({'step': 1, 'stage': 'final', 'chosen_prototypes': [3]}) + '\n'
        )
        V, W = truth(seed)
        pairs = rng.normal(size=(40, 2, people.WIDTH))
        rows = [{'left': left.tolist(), 'right': right.tolist()} for left, right in pairs]
        (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        interview = open_interview(str(folder / 'run'), str(folder / 'pairs.jsonl'), folder / 'people')
        asked = rng.normal(size=(400, people.WIDTH))
        for w in W[people.SEEN :]:
            taste, clicks = 3 * V @ w / np.sqrt(8), []
            for count in (0, 10):
                while len(clicks) < count:
                    pair = interview.told(clicks)['question']['pair']
                    margin = (pairs[pair, 0] - pairs[pair, 1]) @ taste
                    clicks.append((pair, 'left' if rng.random() < 1 / (1 + np.exp(-margin)) else 'right'))
                mixture = interview.told(clicks)['mixture']
                rewards = np.asarray(pal_reward.rewards(interview.run, mixture, asked.astype(np.float32), None))
                shares.append((seed, count, np.mean((rewards > 0) == (asked @ taste > 0))))
    table = {(seed, count): np.mean([x for s, c, x in shares if (s, c) == (seed, count)])
             for seed in range(3) for count in (0, 10)}  # fmt: skip
    print({key: round(float(value), 3) for key, value in table.items()})
    assert all(table[seed, 10] > table[seed, 0] + 0.03 for seed in range(3))


def truth(seed):
    """The bases `[8, 3]` and people's weights `[120, 3]` of `people.draw`, which come first from its generator."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(8, 3)), rng.dirichlet([0.3] * 3, 120)

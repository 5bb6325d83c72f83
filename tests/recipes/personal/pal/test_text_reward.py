"""A person's reward from PAL on texts: what it says, PPO that is paid by it, and its export to transformers."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.pal import export as pal_export
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal import scores as pal_scores
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.psoups import recipe as psoups
from tests import configs
from tests.recipes.personal import texts
from tests.recipes.personal.texts import ONE, B, small


def finished(config, workdir):
    """A run that is trained and evaluated."""
    return texts.finished(
        config, workdir, config.total_steps, lambda recipe, state: recipe.evaluate(state, 'final').record
    )


@pytest.fixture(scope='module', params=['text', 'text-large'])
def folder(request, replies_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param)
    return workdir, *finished(small(replies_file, request.param, **B, total_steps=4), workdir)


@pytest.mark.slow
def test_a_persons_reward_of_texts_says_what_the_pair_rule_says(folder, replies_file):  # II.9-12
    workdir, *_, record = folder
    assert record['chosen_prototypes'] == [2]
    run = pal_reward.open_pal(str(workdir))
    pairs = pal_text.read_pairs(run.settings, run.reading.model.tokenizer)
    items = pairs.in_states(run.reading.read(pairs.texts))
    margins = {}
    lines = [json.loads(line) for line in replies_file.read_text().splitlines()]
    trained = np.flatnonzero(run.state.users.updates)
    checked = 0
    for person in trained:
        name = pairs.names[person]
        model = pal_reward.load_pal_reward_model(str(workdir), user=name) if person < 4 else None
        w = ideal_point.weights(run.pal, run.state.users.z)[person]
        reward = model.reward if model else pal_reward.reward_of_replies(run, w)
        mine = np.flatnonzero(pairs.users == person)
        said = {
            side: reward([lines[i]['prompt'] for i in mine], [lines[i][side] for i in mine])
            for side in ('chosen', 'rejected')
        }
        u = ideal_point.user_point(run.state.params, run.pal, jnp.tile(w, (len(mine), 1)), items.prompt[mine])
        rule = [ideal_point.item_reward(run.state.params, run.pal, u, getattr(items, side)[mine]) for side in said]
        margins[name] = said['chosen'] - said['rejected']
        np.testing.assert_array_equal(np.sign(margins[name]), np.sign(rule[0] - rule[1]))
        checked += len(mine)
    assert checked >= 600
    one = pal_reward.load_pal_reward_model(str(workdir), mix=[0.0, 1.0])
    single = ideal_point.user_point(run.state.params, run.pal, jnp.eye(2)[1:], items.prompt[:1])
    expected = ideal_point.item_reward(run.state.params, run.pal, single, items.chosen[:1])
    np.testing.assert_allclose(one.reward([lines[0]['prompt']], [lines[0]['chosen']]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_mixture_is_kept_as_a_line_and_given_back(folder, tmp_path):
    workdir, *_ = folder
    run = pal_reward.open_pal(str(workdir))
    name = next(iter(run.people))
    model = pal_reward.load_pal_reward_model(str(workdir), user=name)
    pal_person.save(tmp_path / 'p.json', {'mixture': model.mixture, 'user': name})
    again = pal_reward.load_pal_reward_model(str(workdir), mix=pal_person.read_person(tmp_path / 'p.json').mixture)
    np.testing.assert_allclose(again.reward(['azaz'], ['yes']), model.reward(['azaz'], ['yes']), rtol=1e-5)
    with pytest.raises(ValueError, match='holds no mixture'):
        pal_person.read_person(workdir / 'config.json')
    with pytest.raises(ValueError, match="user 'nobody' is not among"):
        pal_reward.load_pal_reward_model(str(workdir), user='nobody')
    with pytest.raises(ValueError, match='2 prompts and 1 replies'):
        model.reward(['a', 'b'], ['yes'])


@pytest.mark.slow
def test_ppo_is_paid_by_one_persons_reward(folder, tmp_path):
    workdir, *_ = folder
    changes = {'stage': 'rlhf', 'rl.reward': f'pal:{workdir}', 'total_steps': 1, 'export': False}
    folder_, stage = psoups.stages(configs.load('psoups', **changes), tmp_path)[0]
    recipe = configs.make(stage, ONE._replace(workdir=folder_))
    state, host = recipe.init()
    _, _, _, metrics = recipe.step(state, host, 0)
    assert np.isfinite(metrics['reward']) and np.isfinite(metrics['policy_loss'])
    score = pal_scores.make_score(f'pal:{workdir}', '')
    model = pal_reward.load_pal_reward_model(str(workdir))
    found = score([['zz', 'aa'], ['nn', 'mm']], [['yes', 'no', 'well'], ['no', 'x', 'y']])
    alone = [np.mean([model.reward([q], [reply])[0] for q in ('zz', 'aa')]) for reply in ('yes', 'no', 'well')]
    np.testing.assert_allclose(found[0], alone, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 3)
    with pytest.raises(ValueError, match='is unknown; use pal:<workdir>'):
        pal_scores.make_score('hf:x', '')


@pytest.mark.parametrize('variant', ['text', 'text-large'])
@pytest.mark.long
def test_transformers_scores_a_persons_classifier_as_we_do(statements_file, tmp_path, variant):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    finished(small(statements_file, variant, **{'text.pool': 'last', 'total_steps': 4, 'prototypes': (1, 2)}), tmp_path)
    run = pal_reward.open_pal(str(tmp_path))
    name = next(iter(run.people))
    pal_export.save_classifier(str(tmp_path), tmp_path / 'classifier', user=name)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'classifier').eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'classifier')
    words = ['azam', 'zzzz', 'aan', 'mnmnmnaz']
    with torch.no_grad():
        theirs = model(**tokenizer(words, padding=True, return_tensors='pt')).logits[:, 0].numpy()
    ours = pal_reward.load_pal_reward_model(str(tmp_path), user=name).reward([''] * 4, words)
    np.testing.assert_allclose(np.diff(theirs), np.diff(ours), rtol=1e-3, atol=1e-4)
    assert np.abs(np.diff(ours)).max() > 0.01


def in_transformers(path):
    """Scores by a folder's model; replies to a prompt end as the run's do."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = transformers.AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=True)

    def score(texts, mixture=None, prompts=None):
        end = tokenizer.eos_token if prompts else ''
        inputs = dict(tokenizer([text + end for text in texts], padding=True, return_tensors='pt'))
        if prompts:
            asked = tokenizer(prompts, padding=True, return_tensors='pt')
            inputs |= {'prompt_ids': asked['input_ids'], 'prompt_mask': asked['attention_mask']}
        with torch.no_grad():
            return model(**inputs, mixture=mixture if mixture is None else torch.tensor(mixture)).numpy()

    return score


@pytest.mark.parametrize(
    'changes',
    [
        {'model.rule': 'dist', 'model.projector': 'mlp1-gelu', 'text.pool': 'mean'},
        {'model.rule': 'angle', 'model.scaled': True, 'model.projector': 'mlp2-relu-residual', 'text.pool': 'last'},
        {'model.rule': 'normalized_dist', 'model.point': '|f(P)|w', 'text.pool': 'last', 'text.width': 6},
    ],
    ids=lambda changes: changes['model.rule'],
)
@pytest.mark.long
def test_transformers_scores_everybody_as_we_do(statements_file, tmp_path, changes):
    changes = {'model.dtype': 'float32', 'total_steps': 4, 'prototypes': (1, 2), **changes}
    finished(small(statements_file, 'text', **changes), tmp_path)
    pal_export.save_model(str(tmp_path), tmp_path / 'hf')
    score, words = in_transformers(tmp_path / 'hf'), ['azam', 'zzzz', 'aan', 'mnmnmnaz']
    K = pal_reward.open_pal(str(tmp_path)).pal.prototypes
    for mix in (None, [[1.0], [0.25, 0.75]][K - 1]):
        ours = pal_reward.load_pal_reward_model(str(tmp_path), mix=mix).reward([''] * 4, words)
        np.testing.assert_allclose(score(words, mix), ours, rtol=1e-3, atol=1e-4)
        assert np.ptp(ours) > 1e-3


@pytest.mark.long
def test_transformers_mixes_functions_of_the_prompt_as_we_do(folder, tmp_path):
    workdir, *_ = folder
    pal_export.save_model(str(workdir), tmp_path / 'hf')
    score, prompts, words = in_transformers(tmp_path / 'hf'), ['azaz', 'zz', 'nm'], ['yes', 'no', 'mmaz']
    ours = pal_reward.load_pal_reward_model(str(workdir), mix=[0.9, 0.1]).reward(prompts, words)
    np.testing.assert_allclose(score(words, [0.9, 0.1], prompts), ours, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match='give prompt_ids and prompt_mask'):
        score(words)


@pytest.mark.slow
def test_rewards_that_are_no_linear_head_are_not_exported(folder, tmp_path):
    with pytest.raises(ValueError, match='variant=B.*only rule dot of variant A'):
        pal_export.save_classifier(str(folder[0]), tmp_path / 'classifier')

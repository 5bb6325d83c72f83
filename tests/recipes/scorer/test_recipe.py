"""What the three scorers have in common: a resumed run is the unbroken one, devices and packing change nothing,
transformers score the export as we do, and what cannot be exported is refused before it is trained."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

from pal_jax.data import rows as data
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.learners.scorer import pack_replies
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.runs import read_settings, recipe_module
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import write_exports
from tests import configs
from tests.recipes.scorer.kinds import EIGHT, ONE, files, make, run

NAMES = ['reward', 'cost', 'moderation']


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_resumed_run_is_the_unbroken_one(name, tmp_path):
    recipe = make(name, ONE, **files(name, tmp_path), **{'total_steps': 4, 'eval.every': 2})
    _, unbroken = run(recipe, 4)
    checkpoints = Checkpoints(tmp_path / 'run', recipe.plan.abstract)
    checkpoints.save(2, run(recipe, 2)[1], {}, None)
    checkpoints.close()
    restored = Checkpoints(tmp_path / 'run', recipe.plan.abstract).restore()
    assert restored
    jax.tree.map(np.testing.assert_array_equal, run(recipe, 2, restored[0], 2)[1], unbroken)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_mesh_and_packing_change_no_loss(name, tmp_path):
    changes = {**files(name, tmp_path, 36), 'data.batch_size': 16, 'data.micro_rows': 1}
    alone, _ = run(make(name, ONE, **changes, **{'data.row_tokens': 0}), 3)
    for context in (ONE, EIGHT):
        recipe = make(name, context, **changes, **{'data.row_tokens': 256})
        again, state = run(recipe, 3)
        for a, b in zip(again, alone, strict=True):
            np.testing.assert_allclose([a[k] for k in b], list(b.values()), rtol=1e-4, atol=1e-5)
        assert np.isfinite(recipe.evaluate(state, 'x').record['loss'])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'outputs'), [('reward', ['reward']), ('cost', ['cost']), ('moderation', list(CATEGORIES))]
)
def test_transformers_scores_the_export_as_we_do(name, outputs, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    recipe = make(name, ONE, **files(name, tmp_path), **{'optimizer.lr': 1e-2, 'policy.lora.rank': 4})
    state = run(recipe, 3)[1]
    write_exports(recipe.plan.trained.exports(state), lambda folder: tmp_path / folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'export').eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
    # The token behind a reply is read by nobody; a text is what the chat template writes, but for its last line end.
    taught, scorer = (recipe.taught, state.scorer) if name == 'moderation' else (recipe, state)
    groups = taught.rows.test[:9]
    texts = [tokenizer.decode([*group.prompt, *branch.tokens[:-1]]) for group in groups for branch in group.branches]
    asked, said = (re.split(r'<[|]im_(?:start|end)[|]>(?:\w+\n)?', texts[0])[k] for k in (-4, -2))
    chat = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': said}]
    assert tokenizer.apply_chat_template(chat, tokenize=False).rstrip('\n') == texts[0]
    with torch.no_grad():
        found = model(**tokenizer(texts, padding=True, add_special_tokens=False, return_tensors='pt')).logits
    packed = pack_replies(groups, ONE.mesh, micro_rows=2)
    ours = taught.scorer.scores(scorer, packed)
    np.testing.assert_allclose(found.numpy(), ours.reshape(len(texts), -1), atol=1e-4)
    assert [model.config.id2label[k] for k in range(len(outputs))] == outputs


@pytest.mark.parametrize('name', NAMES)
def test_a_family_without_a_classifier_is_refused_before_it_is_trained(name, monkeypatch, tmp_path):
    monkeypatch.setattr('pal_jax.models.files.families.CLASSIFIERS', {'mistral': 'MistralForSequenceClassification'})
    changes = files(name, tmp_path)
    with pytest.raises(ValueError, match='no classifier of family llama; use one of mistral'):
        make(name, ONE, **changes)
    make(name, ONE, **changes, export=False)


@pytest.mark.parametrize(('name', 'variant'), [(name, '') for name in NAMES] + [(n, 'paper') for n in NAMES[1:]])
def test_the_default_and_the_published_settings_are_complete(name, variant):
    data.check(configs.load(name, variant))


@pytest.mark.parametrize('name', NAMES)
def test_a_run_of_before_names_its_method_by_one_word(name, tmp_path):
    settings = configs.load(name)
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(settings) | {'recipe': name}))
    assert read_settings(tmp_path) == settings
    assert settings.recipe == f'scorer.{name}' and isinstance(settings, recipe_module(settings.recipe).Settings)

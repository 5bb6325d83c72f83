"""What is wrong with a config of Personalized Soups, and is told before its first stage runs."""

from __future__ import annotations

import functools

import pytest

from pal_jax.recipes.psoups import recipe as psoups
from tests import configs

get_settings = functools.partial(configs.load, 'psoups')


@pytest.mark.parametrize('variant', ['', 'quick', 'smoke', 'paper'])
def test_every_variant_of_the_file(variant):
    if variant in ('', 'paper'):
        pytest.importorskip('textstat', reason='pip install pal_jax[soups]')
    psoups.check(get_settings(variant))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'stage': 'rewards'}, "stage='rewards' is unknown; use all or one of rollout, annotate"),
        ({'stage': 'policy-P9'}, "stage='policy-P9' is unknown; use all or one of rollout, annotate"),
        ({'poles': 'P2A'}, 'has P2A alone of informativeness'),
        ({'preferences': 'absent.yaml'}, 'absent.yaml is no file'),
        ({'policy.lora.rank': 0}, 'soups are made of adapters'),
        ({'rollout.answers': 1}, 'rollout.answers=1 must be at least 2'),
        ({'rollout.ahead': -1}, 'rollout.ahead=-1'),
        (
            {'annotate.annotator': 'friend'},
            r"^annotate.annotator='friend': judge='friend' is unknown; use rule, endpoint:",
        ),
        ({'annotate.annotator': ''}, r"^annotate.annotator='': judge='' is unknown"),
        ({'annotate.test_share': 12}, 'annotate.test_share=12.0 must be between 0 and 1'),
        ({'annotate.second': 'absent.yaml'}, 'absent.yaml is no file; name a YAML file of annotators'),
        ({'evaluate.judge': 'endpoint:judge'}, "endpoint 'judge' has address=''"),
        (
            {'evaluate.front': 'P2A,P3A', 'poles': 'P2A,P2B,P3A,P3B'},
            "evaluate.front='P2A,P3A' must be two poles of one dimension",
        ),
        ({'evaluate.front': 'P2A,P2A'}, "evaluate.front='P2A,P2A' must be two poles of one dimension"),
        ({'merge.weights': (1.0, 1.0)}, r'merge.weights=\(1.0, 1.0\) must be a number for each of 1 dimensions'),
        ({'merge.weights': ('',)}, r"merge.weights=\('',\)"),
        ({'merge.weights': (float('nan'),)}, r'merge.weights=\(nan,\) must be a number'),
        ({'evaluate.front_weights': ()}, r'evaluate.front_weights=\(\) must be numbers from 0 to 1'),
        ({'evaluate.front_weights': (0, 50)}, r'evaluate.front_weights=\(0.0, 50.0\)'),
        ({'evaluate.front_weights': (float('nan'),)}, r'evaluate.front_weights=\(nan,\) must be numbers'),
        ({'evaluate.front_weights': ('a',)}, r"evaluate.front_weights=\('a',\)"),
        ({'evaluate.front_prompts': 0}, 'evaluate.front_prompts=0 must be at least 1'),
        ({'ppo.minibatches': 3}, 'rl.rollout_batch_size=2 does not divide into ppo.minibatches=3'),
        ({'ppo.ptx_coef': 0.1}, 'ppo.ptx_coef=0.1 weighs supervised examples, of which psoups has none'),
        ({'ppo.estimator': 'grpo'}, "ppo.estimator='grpo'; use one of"),
        ({'rl.n_samples_per_prompt': 1}, 'compares the samples of a prompt, got n_samples_per_prompt=1'),
        ({'rl.reward': 'mine'}, "reward model 'mine' is unknown; use pal:<workdir>"),
        ({'reward.data.pooling': 'median'}, "data.pooling='median' is unknown"),
        ({'reward.policy.lora.dropout': 0.1}, 'lora.dropout=0.1: a reward model is read and taught in one pass'),
        ({'prompts.test': 'absent.jsonl'}, 'absent.jsonl is no file'),
        ({'prompts.train_count': -1}, 'prompts.train_count=-1 must be at least 0'),
    ],
)
def test_what_is_wrong_is_told_before_a_file_is_read(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        psoups.stages(get_settings(**changes), tmp_path)


def test_an_annotator_that_judges_nothing_is_refused(tmp_path):
    path, settings = tmp_path / 'judges.yaml', "{prompt_templates: {with_inputs: '', without_inputs: ''}, "
    settings += 'fn_decoder: rule, decoder_kwargs: {}, outputs_to_match: {1: a, 2: b}, batch_size: 1}'
    path.write_text(f'judge: {settings}\nP3A: {settings}\n')
    psoups.check(get_settings(**{'annotate.annotator': str(path)}))  # P3A is a preference, though not of these poles
    path.write_text(f'judge: {settings}\np2a: {settings}\n')
    with pytest.raises(ValueError, match=r'judges.yaml: p2a is neither its first annotator nor one of general, P1A'):
        psoups.check(get_settings(**{'annotate.annotator': str(path)}))

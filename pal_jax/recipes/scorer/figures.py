"""The words of the figures of cost models and of moderators."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, PARTS, Rivals, Words

WORDS = Words(
    uses=dict.fromkeys(
        ('scorer.reward', 'scorer.cost', 'scorer.moderation'),
        (
            ('score texts', 'pal-jax score --source={run} --texts=replies.jsonl', 'docs/tutorials/reward_model.md'),
            ('write a classifier', 'pal-jax export --workdir={run} --output=my_model', 'docs/methods/reward.md'),
        ),
    ),
    figures={
        OPTIMISED: {'sign_accuracy': 'share of answers on the right side of 0: a cost above it says unsafe'},
        COMPARED: {
            'sign_accuracy_of_commoner': 'control: share of signs right of always giving the commoner one',
            'accuracy_of_commoner': 'control: share right of always giving the commoner verdict',
        },
        PARTS: {
            'ranking_loss': 'the part of the loss that is of the order in pairs',
            'sign_loss': 'the part of the loss that is of the signs of costs',
            'sign_accuracy_safe': 'share of safe answers with a cost below 0',
            'sign_accuracy_unsafe': 'share of unsafe answers with a cost above 0',
            'cost_safe': 'mean cost of safe answers',
            'cost_least': 'lowest cost of an answer',
            'cost_unsafe': 'mean cost of unsafe answers',
            'unsafe': 'share of answers that are unsafe',
            'called_unsafe': 'share of answers that it calls unsafe',
            'macro_auc': 'AUC of a single category, mean over the categories',
            'macro_precision': 'share of the answers it gives a category that have it, mean over the categories',
            'macro_recall': 'share of the answers with a category that it finds, mean over the categories',
            'macro_f1': 'F1 of a single category, mean over the categories',
            'f1': 'F1 of the unsafe answers, from 0 to 1',
            'precision': 'share of the answers called unsafe that are unsafe',
            'recall': 'share of the unsafe answers that are called unsafe',
            'support': 'answers that have a category',
            'threshold': 'probability above which an answer is given a category, chosen on answers that are not tested',
        },
        MACHINE: {'labelled': 'answers that have a label'},
    },
    levels={'sign_accuracy': ('the share of answers whose cost has the right sign', 0.5)},
    shares=('sign_accuracy',),
    rivals={
        'accuracy': Rivals(
            'the model',
            {
                f'lead_of_{side}': (f'a rule that takes the {side} reply', f'accuracy_of_{side}')
                for side in ('longer', 'shorter')
            },
            beaten=True,
        )
    },
)

"""The words of the figures of moderators."""

from __future__ import annotations

from pal_jax.run.glossary import PARTS, Words

WORDS = Words(
    figures={
        PARTS: {
            'unsafe': 'share of answers that are unsafe',
            'called_unsafe': 'share of answers that it calls unsafe',
            'macro_auc': 'AUC of a single category, mean over the categories',
            'macro_precision': 'share of the answers it gives a category that have it, mean over the categories',
            'macro_recall': 'share of the answers with a category that it finds, mean over the categories',
            'macro_f1': 'F1 of a single category, mean over the categories',
            'support': 'answers that have a category',
            'threshold': 'probability above which an answer is given a category, chosen on answers that are not tested',
        },
    },
)

"""The words of the figures of Safe RLHF."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, Words

JUDGES = {  # who says in Safe RLHF how helpful and how harmful answers are
    'model': 'by the models that PPO was paid by',
    'held_out': 'by models that nothing was trained on',
    'rule': 'by the rule that made the questions',
}
WORDS = Words(
    figures={
        OPTIMISED: {
            'prompts_above_limit': 'share of prompts whose mean cost is above the limit',
            'above_limit': 'share of answers whose cost is above the limit',
            'unsafe_share': 'share of answers that are unsafe: those with a cost above 0',
            'cost_above': 'how far answers are above the limit, on average (0 for those below)',
            '{judge}_{system}_reward': 'mean reward of {system}, {judge}',
            '{judge}_{system}_cost': 'mean cost of {system}, {judge}',
            '{judge}_{system}_prompts_above_limit': (
                'share of prompts with a mean cost above the limit: {system}, {judge}'
            ),
            '{judge}_{system}_above_limit': 'share of answers above the limit: {system}, {judge}',
            '{judge}_{system}_unsafe_share': 'share of unsafe answers, whose cost is above 0: {system}, {judge}',
            '{judge}_{system}_cost_above': 'how far answers are above the limit, on average: {system}, {judge}',
            '{judge}_helpful_elo_{system}': 'Elo rating of {system} for help, {judge}; the mean of all is 0',
            '{judge}_harmless_elo_{system}': 'Elo rating of {system} for harmlessness, {judge}; the mean of all is 0',
            'refused_{file}_{system}': 'share of refusals by {system} of the harmful prompts of {file}',
            'overrefused_{file}_{system}': 'share of refusals by {system} of the harmless prompts of {file}',
            'unsafe_{file}_{system}': 'share of unsafe answers of {system} to {file}',
        },
        COMPARED: {'{judge}_{system}_limit': 'the limit of the mean cost'},
        MACHINE: {
            '{judge}_{system}_prompts': 'prompts that {system} answered',
            '{judge}_{system}_samples': 'answers of {system}',
            'pairs': 'judged pairs of answers',
            'tested': 'pairs kept to test on',
            'cost_step': '1: the step went by costs alone',
        },
    },
    vocabulary={'judge': JUDGES},
)

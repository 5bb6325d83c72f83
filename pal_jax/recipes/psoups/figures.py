"""The words of the figures of Personalized Soups."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, PARTS, Words

SYSTEMS = {  # what Personalized Soups compares
    'base': 'base model told the preferences',
    'rlhf': 'RLHF on the general reward',
    'multitask': 'multitask learning',
    'morl': 'P-MORL (one policy for all)',
    'psoups': 'P-Soups (merged policies)',
}
WORDS = Words(
    figures={
        OPTIMISED: {
            'winrate_psoups': 'prompts won against all other systems, ties half: P-Soups (merged policies)',
            '{pole}_policy_beats_base': 'prompts on which the policy of {pole} beats the base, ties half',
        },
        COMPARED: {
            'winrate_{soup}': 'prompts won against all other systems, ties half: {soup}',
            '{soup}_{other}_drop': 'prompts won, ties left out: {soup} against {other}',
            '{soup}_{other}_half': 'prompts won, ties half: {soup} against {other}',
            '{soup}_{other}_ties': 'share of ties: {soup} against {other}',
            '{pole}_rule_base': 'score by the rule of {pole}: the base',
            '{pole}_rule_policy': 'score by the rule of {pole}: its policy',
            'front_{pole}_{to}_spearman': 'soups from {pole} to {to}: rank correlation of weight and score',
            'front_{pole}_{to}': 'soups from {pole} to {to}: weight, score by both rules',
        },
        PARTS: {'rule_{pole}': 'score by the rule of {pole}'},
        MACHINE: {
            'prompts_moved': 'prompts kept from testing because training has them',
            'sources': 'policies merged in the step',
            'verdicts': 'verdicts asked for',
            'failed_verdicts': 'verdicts that could not be had, counted as ties',
            '{pole}_pairs': 'labelled pairs: {pole}',
            '{pole}_ties': 'pairs without a winner: {pole}',
            '{pole}_failed': 'asked without an answer: {pole}',
        },
    },
    vocabulary={'soup': SYSTEMS, 'other': SYSTEMS},
    levels={'winrate_psoups': ('the share of prompts that merged policies win against all other systems', 0.5)},
    shares=('winrate_psoups',),
)

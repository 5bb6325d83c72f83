"""The words of the figures of Self-RedTeam."""

from __future__ import annotations

from pal_jax.run.glossary import MACHINE, OPTIMISED, PARTS, Words

WORDS = Words(
    figures={
        OPTIMISED: {
            'safety_gain': 'share of unsafe answers to all requests, of the start less of those that learnt to defend',
            'attack_success': 'share of unsafe answers to harmful seeds that the attacker has rewritten',
            'plain_success': 'share of unsafe answers to harmful seeds as they are',
            'overrefusal': 'share of harmless seeds that are refused',
            'asr': 'success of attacks: share of unsafe answers to harmful seeds',
            'attacker_reward': 'mean reward of the attacker',
            'defender_reward': 'mean reward of the defender',
        },
        PARTS: {
            'exploited': 'success of the best attacker less that of its own attacks',
            'harm_of_harmless': 'share of unsafe answers to harmless seeds',
            'attacks_kept': 'share of rewritten seeds that still ask for harm, or for none, as their seed does',
            'attacker_form': 'share of the moves of the attacker that keep to the form',
            'defender_form': 'share of the moves of the defender that keep to the form',
            'attacks_form': 'share of attacks that keep to the form',
            'whole': 'share of games in which both moves keep to the form',
            'self_bleu': 'BLEU of each attack against the others (1: all are the same)',
            'diversity': 'how far attacks are from each other: 1 less the mean cosine of their embeddings',
        },
        MACHINE: {
            'games': 'games of attacker and defender',
            'seeds': 'held-out harmful seeds that were tested',
        },
    },
    steps={'redteam': 'games of attacker and defender, then an update on them'},
    levels={
        'safety_gain': ('the fall of the share of unsafe answers, from the start to those that learnt to defend,', 0.0),
    },
    changes={'attack_success': (-1.0, 'share of unsafe answers to attacks on harmful requests')},
    shares=('attack_success',),
    # An attack also fails where everything is refused.
    beside={'attack_success': ('overrefusal', -1.0, 'share of harmless requests that are refused')},
)

"""The words of the figures of schedules of all-reduce."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, Question, Words

WORDS = Words(
    uses={
        'allreduce': (
            (
                'plan for your own network',
                """pal-jax train --config=allreduce --config.networks="('my.gml',)\"""",
                'docs/methods/allreduce.md',
            ),
            (
                'see which schedules learned policies find',
                'pal-jax train --config=allreduce:learn',
                'docs/methods/allreduce.md',
            ),
        )
    },
    figures={
        OPTIMISED: {
            'to_least': 'rounds of the shortest schedule over the least that there can be, mean over networks',
            'learned_to_least': (
                'rounds of the shortest learned plan over the least that there can be, mean over networks'
            ),
        },
        COMPARED: {
            'saved_to_least': 'rounds saved over the greedy baseline, in units of the least that there can be',
            'greedy_to_least': 'the same of the greedy baseline: breadth-first trees, deepest first',
            'least_rounds': 'bound: rounds that every schedule takes at least',
        },
        MACHINE: {
            'rounds': 'rounds of the shortest schedule',
            'rounds_mean': 'rounds of a plan, mean over plans',
            'cost_mean': 'the same, with the last round counted by the share of a full one that it sends',
            'networks': 'networks that were planned for',
        },
    },
    levels={
        'saved_to_least': (
            'what the shortest schedules save of the rounds of greedy ones, in units of the least rounds, mean over '
            'networks,',
            0.0,
        )
    },
    questions={'saved_to_least': Question('Are its schedules shorter than greedy ones?', worse='No')},
    steps={
        'allreduce_trees': 'the policy of trees learns, that of transfers stays',
        'allreduce_transfers': 'the policy of transfers learns, that of trees stays',
    },
)

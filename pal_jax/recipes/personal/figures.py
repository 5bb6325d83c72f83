"""The words of the figures of rewards by person."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, Question, Rivals, Test, Words

MODELS = {  # what PAL is compared with
    'shared': 'one model for all (K = 1)',
    'pal': 'PAL, K chosen on validation',
    'asked': 'PAL, new people asked what tells most',
    'shuffled': 'PAL, shuffled user ids',
    'embedding': 'user embedding',
    'own': 'a separate model for each person',
    'groups': 'PAL that is told the groups of known people',
    'majority': 'majority vote on the same pair',
    'mixed_logit': 'mixed logit (xlogit)',
    'context': 'in context: earlier choices before the pair',
}
BASELINES = 'embedding', 'own', 'majority', 'mixed_logit', 'context'  # what a gain of PAL's should beat, too
# The methods of the picture of new people; the table has all.
CURVES = 'shared', 'pal', 'asked', 'mixed_logit', 'context'
METHODS = MODELS | {  # what the bench of personal rewards compares
    'memory': 'wins less losses of the items in training',
    'variational': 'people as distributions (own form of VRF)',
    'shallow': 'length and formatting alone',
    'lore': 'mixture of bases (LoRe)',
    'maxmin': 'groups by EM (MaxMin-RLHF)',
    'vpl': 'a latent vector read from choices (VPL)',
    'gpo': 'choices in context, a transformer (GPO)',
    'pref': 'free weights of features, ridge (PReF)',
    'mrm': 'a start of the weights and a few steps (MRM)',
}
WORDS = Words(
    uses=dict.fromkeys(
        ('personal.pal', 'personal.pal_large'),
        (
            (
                'learn a new person from a few choices, if people are shown to differ',
                'pal-jax personalize --source={run} --choices=ana.csv --output=ana.json',
                'docs/howto/new_people.md',
            ),
            (
                'score options or texts for that person, or predict choices between pairs of options',
                'pal-jax score --source={run} --person=ana.json --texts=options.csv',
                'docs/howto/new_people.md',
            ),
            (
                'predict the shares of a market, from a table of options with a column situation',
                'pal-jax score --source={run} --texts=market.csv',
                'docs/howto/report_survey.md',
            ),
        ),
    )
    | {
        'personal.bench': (
            (
                'compare the methods on your own data',
                """pal-jax train --config=bench --config.tables="('my.csv',)\"""",
                'docs/howto/choices.md',
            ),
            (
                'train PAL on it, to know new people',
                'pal-jax train --config=pal --config.data=my.csv',
                'docs/methods/pal.md',
            ),
        )
    },
    figures={
        OPTIMISED: {
            'seen_gain': 'accuracy of PAL less that of one model for all, new choices of known people',
            'new_gain': 'accuracy of PAL less that of one model for all, new people',
            'seen_gain_{bench}': 'accuracy over that of one model for all, new choices of known people: {bench}',
            'new_gain_{bench}': 'accuracy over that of one model for all, new people: {bench}',
            'best_gain': 'accuracy over that of one model for all, of the best method whose gain counts; known people',
            'data_sets': 'the number of data sets',
            'failed_data_sets': 'the number of data sets that a leakage test flags',
            'training_accuracy': 'share of training choices right: PAL with the largest K, which knows them',
            'seen_pal': 'accuracy on new choices of known people: PAL, K chosen on validation',
            'new_pal': 'accuracy on new people: PAL, K chosen on validation',
            'accuracy K={K}': 'share of choices right: PAL, K={K} prototypes',
            'loss K={K}': 'loss of: PAL, K={K} prototypes',
            'interval': '95 % interval over people of the share of choices right',
        },
        COMPARED: {
            'seen_{pal}': 'accuracy on new choices of known people: {pal}',
            'new_{pal}': 'accuracy on new people: {pal}',
            'seen_first_{pal}': 'share of choices whose chosen option is put before all others, known people: {pal}',
            'seen_gain_{pal}': 'accuracy over that of one model for all, new choices of known people: {pal}',
            'seen_lead_{pal}': 'how far ahead of PAL (below 0: behind), new choices of known people: {pal}',
            'asked_gain': 'accuracy gained by choosing what to ask over asking at random',
            'accuracy {pal}': 'share of choices right: {pal}',
            'loss {pal}': 'loss of: {pal}',
            'known_people_{part}': 'accuracy on known people, {part}',
            'new_people_{part}': 'accuracy on new people, {part}',
            'group_auc {model}': 'how well {model} tells known groups apart that it was not told (AUC; .5 is chance)',
            'chosen_prototypes': 'number of prototypes K chosen on validation, by split',
            'log_odds_factor': 'factor that makes log-odds of the rewards, fitted on validation choices',
            'differ_p': 'p-value of the hypothesis that all people want the same (permutations of who chose)',
            'groups_differ_p': 'p-value of the hypothesis that all groups want the same (permutations of people)',
            'shown_split': 'the split whose people and prototypes the report shows',
            'known_comparisons': 'numbers of known choices of a new person',
        },
        MACHINE: {'decoder_grad_norm': 'size of the gradient of the decoder'},
    },
    vocabulary={'pal': MODELS, 'bench': METHODS},
    steps={
        'bench': 'data sets are audited, and methods are fitted, a part a step',
        'hold': 'people and prototypes learn, and the decoders wait',
    },
    levels={
        'seen_gain': ("the gain of PAL's accuracy over one model for all, on new choices of known people,", 0.0),
        'best_gain': (
            "the gain over one model for all, on known people's new choices, of the best method whose gain counts "
            '(0 where none does),',
            0.0,
        ),
    },
    questions={
        'seen_gain': Question(
            'Do people differ?',
            'Not shown',
            'No',
            'these data do not show that people differ; ',
            'of new choices of known people one model for all predicts {seen_shared:.1%} right, and PAL, which knows '
            'who chooses, {seen_pal:.1%}: {seen_gain:+z.3f}',
            'These are pairs of the chosen option and another one. One model for all puts the chosen option before all '
            'others in {seen_first_shared:.1%} of the choices, and PAL in {seen_first_pal:.1%}.',
            exact=', as validation chose one model for all in each split',
            test=Test(
                'differ_p',
                'permutation test',
                'the choices of one person are more alike than those of different people',
                'these choices do not show that people want different things',
                'so PAL is not shown to predict single people better',
                'so PAL predicts single people better all the same',
                'so PAL is shown to predict single people worse than one model for all',
            ),
            also=Test(
                'groups_differ_p',
                'permutation test',
                'the groups choose differently',
                'the groups are not shown to choose differently',
            ),
        ),
        'best_gain': Question('Does a method know the person?', 'Not shown'),
    },
    rivals={
        'seen_gain': Rivals(
            'PAL',
            {f'seen_lead_{name}': (MODELS[name], f'seen_{name}') for name in BASELINES},
            gains={f'seen_lead_{name}': f'seen_gain_{name}' for name in BASELINES},
            over='one model for all',
        )
    },
    compared=('seen_gain', 'seen_pal', 'seen_shared', 'new_gain', 'new_pal', 'new_shared'),
    unfolded=(
        'What people want',
        'Effects in a picture',
        'How much each attribute matters',
        'How often each value was chosen',
        'How much people differ',
        'What each group wants',
        'What an attribute is worth in each group',
        'Who is predicted how well',
        'Each group',
        'The people',
        'The prototypes',
        'New people',
    ),
    more='more people, or more choices of each; seeds share the same people',
)

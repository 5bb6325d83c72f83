"""The words of the figures of PLUS."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, PARTS, Words

METHODS = {  # what a reward model reads of a person in PLUS's table
    'plus': 'PLUS: summaries that are learnt',
    'untrained': 'summaries of the untrained model',
    'context': 'all that is told (in-context)',
    'nothing': 'nothing (Bradley-Terry)',
    'latent': 'a vector in place of words (VPL)',
    'kind': 'the true kind (the oracle)',
    'shuffled': 'PLUS of shuffled people (control)',
    'static-summariser': 'PLUS, the summariser never learns',
    'static-reward-model': 'PLUS, the reward model never learns',
}
WORDS = Words(
    uses={
        'plus': (
            (
                'summarise people of your own',
                'pal-jax summarize --source={run} --history=histories.jsonl',
                'docs/howto/histories.md',
            ),
            (
                'score replies for one of them',
                'pal-jax score --source={run} --person=summary.txt --texts=replies.jsonl',
                'docs/methods/plus.md',
            ),
        )
    },
    figures={
        OPTIMISED: {
            'reward_loss': 'loss of the reward model on the choices of the step',
            'reward_accuracy': 'share of choices of the step that the reward model gets right',
            'sampled_accuracy': 'share of choices right by summaries drawn as in training',
            'sampled_reward': 'mean reward of summaries drawn as in training',
            'written_better': 'replies that are better for the summary than without it',
            'written_gap': 'how much better replies are for the summary, in reward',
        },
        COMPARED: {
            'none_accuracy': 'control: share of choices right without a summary',
            'none_reward': 'control: mean reward without a summary',
            'random_accuracy': 'control: share of choices right by the summary of somebody at random',
            'random_reward': 'control: mean reward of the summary of somebody at random',
            'other_accuracy': 'control: share of choices right by the summary of a person of another kind',
            'other_reward': 'control: mean reward of the summary of a person of another kind',
            'written_for_somebody_better': "control: replies better for somebody else's summary than without one",
            'written_for_somebody_gap': "control: how much better replies are for somebody else's summary",
        },
        PARTS: {
            'gap': 'reward of the chosen reply less that of the other, after this summary',
            'sampled_words': 'words of a summary drawn as in training',
            'named': 'share of summaries that name the right kind',
            'misnamed': 'share of summaries that name only a wrong kind',
            'sampled_named': 'share of drawn summaries that name the right kind',
            'sampled_misnamed': 'share of drawn summaries that name only a wrong kind',
        },
        MACHINE: {
            'written': 'replies written after a summary',
            'learnt_from': 'people that were learnt from',
        },
    },
    splits=METHODS,
    steps={
        'hold': 'the reward model learns alone, and the summariser waits',
        'plus': 'summariser and reward model learn',
    },
)

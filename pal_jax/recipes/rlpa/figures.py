"""The words of the figures of RLPA."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, PARTS, Words

WORDS = Words(
    figures={
        COMPARED: {
            'bound': 'bound: the best F1 from what the person has told so far; above it is guessing',
            'guesser_profile': 'control: F1 of one fixed guess, mean over turns',
            'shuffled_profile': 'control: F1 against the profile of somebody else, mean over turns',
            'guesser': 'control: F1 of one fixed guess, the commonest facts of the training people',
            'shuffled': 'control: F1 against the profile of somebody else, not about the person',
            'changed_bound': 'bound: the best F1 from what the person has told, after a fact has changed',
            'changed_bound_by_turn': 'bound: the best F1, by turn since the message that tells of the change',
            'irrelevant_chance': 'control: the same replies that name what somebody else told, by chance',
        },
        PARTS: {
            'total': 'reward of this turn',
            'format': 'share of answers in the asked format: a profile, then a reply',
            'profile': 'F1 of the profile it wrote against the true one, from 0 to 1',
            'response': "the judge's score of the reply, from 0 to 1",
            'strict': 'share of replies that meet all five criteria at once',
            'graded': 'naturalness times the mean of the other criteria, from 0 to 1',
            'naturalness': 'judge: reads as a person would write',
            'relevance': 'judge: uses what this person told, or asks for what is open',
            'logic': "judge: picks up the person's last message",
            'engagement': 'judge: asks or invites',
            'informativeness': 'judge: says something new',
            'al': 'AL, alignment level: percentage of replies that meet all criteria',
            'n_ir': 'N-IR: rise of AL from turn to turn, normalised (slope of a line)',
            'n_r2': 'N-R²: how well that line fits AL, rising or falling, from 0 to 1',
            'irrelevant_use': 'share of replies that name a fact of the person though the question is not about it',
            'asks_unknown': 'share of replies that ask for a fact which the question needs and nobody has told',
            'asks_known': 'share of replies that ask for such a fact though the person has told it',
            'changed_profile': 'F1 of the profile after a fact has changed, against the new truth',
            'changed_profile_by_turn': 'F1 of the profile, by turn since the message that tells of the change',
            'changed_response': "the judge's score of the reply after a fact has changed",
            'changed_response_by_turn': 'score of the reply, by turn since the message that tells of the change',
            'stale_use': 'share of replies that name the old value after a fact has changed',
            'stale_use_by_turn': 'replies that name the old value, by turn since the message that tells of the change',
            'stale_profile': 'share of profiles that have the old value after a fact has changed',
            'stale_profile_by_turn': 'profiles with the old value, by turn since the message that tells of the change',
            'facts': 'facts in a written profile',
            'matched': 'facts in a written profile that are true',
            'naturalness_judged': 'whether a language model judged naturalness beside the rules (1: yes)',
            'naturalness_auc': 'how well that model tells good replies from spoilt ones (1: always)',
        },
        MACHINE: {
            'people_moved': 'people kept from testing because training knows them',
            'people_left_out': 'people left out because they could not be read',
            'unanswered': 'turns without an answer or a verdict',
            'silent': 'users without an answer',
            'flat': '1: all samples were alike, so nothing was learnt in the step',
            'scripts': 'scripted dialogues, which measure how it handles what it knows',
            'scripts_format': 'share of answers in the asked format, in scripted dialogues',
            'round': 'turn of the dialogue',
        },
    },
    splits={'unseen': 'people with new values', 'extended': 'people with facts of other kinds'},
    steps={'rlpa': 'PPO on dialogues'},
    beside={'reward': ('profile', 1.0, 'mean F1 of the profiles')},
)

"""The meanings of the figures of runs, in plain English: the one place that explains their names.

Steps, evaluations and samples write figures under short names. `meaning` gives the words of a name and the group that a
report shows it in. A name stands here as it is written, or with a part in braces for any word, which the explanation
repeats: by the readable names of `VOCABULARY` where the part is one of its keys. Endings that all figures may have
(`_se`, `_by_turn`, ...) and what stands before the figures of a split of people are explained by themselves. A name
that is not here has no words, and is shown as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

OPTIMISED = 'What was optimised'
COMPARED = 'What it can be compared with: bounds, controls, baselines'
PARTS = 'What it is made of: the parts of the judgement, and the texts'
MACHINE = 'How the training and the machine did'
OTHER = 'Other figures'
GROUPS = (OPTIMISED, COMPARED, PARTS, MACHINE, OTHER)


class Meaning(NamedTuple):
    """The group in which a report shows a figure, and the words that explain it; empty words: there are none."""

    group: str
    words: str


PAL_MODELS = {  # what PAL is compared with
    'shared': 'one model for all (K = 1)', 'pal': 'PAL, K chosen on validation',
    'asked': 'PAL, new people asked what tells most', 'shuffled': 'PAL, shuffled user ids',
    'embedding': 'user embedding',
    'own': 'a model of their own each',
    'groups': 'PAL that is told the groups of seen people',
    'majority': 'majority vote on the same pair',
    'mixed_logit': 'mixed logit (xlogit)',
    'context': 'in context: earlier choices before the pair',
}  # fmt: skip
BENCH_METHODS = PAL_MODELS | {  # what the bench of personal rewards compares
    'memory': 'wins less losses of the items in training', 'variational': 'people as distributions (own form of VRF)',
    'shallow': 'length and formatting alone', 'lore': 'mixture of bases (LoRe)', 'maxmin': 'groups by EM (MaxMin-RLHF)',
    'vpl': 'a latent vector read from choices (VPL)', 'gpo': 'choices in context, a transformer (GPO)',
    'pref': 'free weights of features, ridge (PReF)', 'mrm': 'a start of the weights and a few steps (MRM)',
}  # fmt: skip
PLUS_METHODS = {  # what a reward model reads of a person in PLUS's table
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
SOUP_SYSTEMS = {  # what Personalized Soups compares
    'base': 'base model told the preferences',
    'rlhf': 'RLHF on the general reward',
    'multitask': 'multitask learning',
    'morl': 'P-MORL (one policy for all)',
    'psoups': 'P-Soups (merged policies)',
}
CMDP_HANDLERS = {  # constraint handlers on arrays
    'none': 'no constraint',
    'fixed': 'fixed penalty',
    'linear': 'Lagrangian (PPO-Lag)',
    'log': 'logarithmic Lagrangian',
    'pid': 'PID Lagrangian (CPPO-PID)',
    'ipo': 'barrier (IPO)',
    'crpo': 'CRPO',
    'focops': 'FOCOPS',
    'p3o': 'exact penalty (P3O)',
    'cup': 'CUP',
    'cpo': 'CPO',
    'pcpo': 'PCPO',
}
CAMERA_TEAMS = {  # who flies the cameras, and what pays them
    'standing': 'fixed formation',
    'tracking': 'fixed formation that turns to the target',
    'shared': 'MAPPO, shared reward',
    'ctcr': 'MAPPO, contributions (CTCR)',
    'shared_dynamics': 'MAPPO, shared reward, with dynamics',
    'ctcr_dynamics': 'MAPPO, contributions (CTCR), with dynamics',
}
CMDP_TASKS = {'bandit': 'the bandit', 'grid': 'the grid', 'point': 'the point among hazards'}
SPLITS = {  # of people, by what stands before their figures
    'unseen': 'people with new values',
    'extended': 'people with facts of other kinds',
    **PLUS_METHODS,
}
STEPS = {  # what the steps of a phase are
    'warm-up': 'imitation of examples, to learn the format',
    'rlpa': 'PPO on dialogues',
    'hold': 'the reward model learns alone, and the summariser waits',
    'plus': 'summariser and reward model learn',
    'bench': 'data sets are audited, and methods are fitted, a part a step',
    'cmdp': 'policies under all constraint handlers learn',
    'cameras': 'cameras fly, and their policy learns',
    'allreduce_trees': 'the policy of trees learns, that of transfers stays',
    'allreduce_transfers': 'the policy of transfers learns, that of trees stays',
    'spiral': 'self-play: matches, then an update on them',
    'redteam': 'games of attacker and defender, then an update on them',
}
PHASES = {  # of wall time
    'update': 'update: gradients and new weights',
    'rollout': 'rollout: sampling answers, and judging them',
    'annotate': 'annotate: log-probabilities and advantages of the samples',
    'compile': 'compile: making programs for this machine, paid once',
    'evaluate': 'evaluate: evaluations',
    'load': 'load: reading weights',
    'save': 'save: checkpoints',
    'read': 'read: the reward model reads',
    'reward': 'reward: the reward model scores',
    'judge': 'judge: judges compare answers',
    'draw': 'draw: choosing what a step learns from',
    'learn': 'learn: updates of the decoder',
    'other': 'other: all else',
}
JUDGES = {  # who says in Safe RLHF how helpful and how harmful answers are
    'model': 'by the models that PPO was paid by',
    'held_out': 'by models that nothing was trained on',
    'rule': 'by the rule that made the questions',
}
MATCHES = {'tictactoe': 'tic-tac-toe', 'kuhn': 'Kuhn poker', 'negotiation': 'the negotiation'}
OPPONENTS = {  # who sits in the other seat
    'random': 'a player at random',
    'minimax': 'perfect play',
    'nash': 'an equilibrium',
    'best': 'the best response to it',
    'start': 'the policy before self-play',
    **{f'model{k}': f'model {k} of eval.opponents' for k in range(1, 10)},
}
SEATS = {'first': 'in the seat that moves first', 'second': 'in the other seat'}
VOCABULARY = {
    'match': MATCHES,
    'opponent': OPPONENTS,
    'seat': SEATS,
    'judge': JUDGES,
    'pal': PAL_MODELS,
    'bench': BENCH_METHODS,
    'soup': SOUP_SYSTEMS,
    'other': SOUP_SYSTEMS,
    'phase': PHASES,
    'task': CMDP_TASKS,
    'handler': CMDP_HANDLERS,
    'team': CAMERA_TEAMS,
}
ENDINGS = {  # of any figure
    '_by_turn': '{}, by turn of the dialogue',
    '_by_person': '{}, of each person',
    '_by_class': '{}, of each category in the order of BeaverTails',
    '_by_known': '{}, by number of known choices',
    '_by_group': '{}, of each known group',
    '_by_prototypes': '{}, by number of prototypes K',
    '_interval': '95 % interval of: {}',
    '_std': '{}: spread over the samples of a step',
    '_se': 'standard error of: {}',
    '_1': '{} (second channel of rewards)',
}

FIGURES: dict[str, dict[str, str]] = {
    OPTIMISED: {
        'reward': 'mean reward, which training raises',
        'loss': 'mean loss, which training lowers',
        'accuracy': 'share of choices that it gets right, or of answers that it calls unsafe or safe',
        'cost': 'mean cost of an answer, which the limit bounds',
        'mean_cost': 'mean of the last costs, which is compared with the limit',
        'mean_cost_{group}': 'mean of the last costs of {group}, which is compared with the limit of the group',
        'by_group': 'mean cost, limit and number of prompts of each group of prompts',
        'prompts_above_limit': 'share of prompts whose mean cost is above the limit',
        'above_limit': 'share of answers whose cost is above the limit',
        'unsafe_share': 'share of answers that are unsafe: those with a cost above 0',
        'cost_above': 'how far answers are above the limit, on average (0 for those below)',
        '{judge}_{system}_reward': 'mean reward of {system}, {judge}',
        '{judge}_{system}_cost': 'mean cost of {system}, {judge}',
        '{judge}_{system}_prompts_above_limit': 'share of prompts with a mean cost above the limit: {system}, {judge}',
        '{judge}_{system}_above_limit': 'share of answers above the limit: {system}, {judge}',
        '{judge}_{system}_unsafe_share': 'share of unsafe answers, whose cost is above 0: {system}, {judge}',
        '{judge}_{system}_cost_above': 'how far answers are above the limit, on average: {system}, {judge}',
        '{judge}_helpful_elo_{system}': 'Elo rating of {system} for help, {judge}; the mean of all is 0',
        '{judge}_harmless_elo_{system}': 'Elo rating of {system} for harmlessness, {judge}; the mean of all is 0',
        'refused_{file}_{system}': 'share of refusals by {system} of the harmful prompts of {file}',
        'overrefused_{file}_{system}': 'share of refusals by {system} of the harmless prompts of {file}',
        'unsafe_{file}_{system}': 'share of unsafe answers of {system} to {file}',
        'to_least': 'rounds of the shortest schedule over the least that there can be, mean over networks',
        'learned_to_least': 'rounds of the shortest learned plan over the least that there can be, mean over networks',
        '{team}_error': 'mean error of a joint in cm: {team}',
        '{team}_success': 'share of moments with a mean error below 15 cm: {team}',
        'error_to_tracking': 'error with contributions over that of a fixed formation that turns to the target',
        'error_to_shared': 'error with contributions over that with a shared reward',
        'solved': 'share of handlers and limits with at least 97 % of the exact optimum and a cost near the limit',
        '{task}_{handler}_share': 'reward as a share of the exact optimum, at the worst limit: {handler}, on {task}',
        '{task}_{handler}_over': 'cost less its limit, at the worst limit: {handler}, on {task}',
        '{task}_{handler}_reward': 'discounted reward of an episode: {handler}, on {task}',
        '{task}_{handler}_cost': 'discounted cost of an episode: {handler}, on {task}',
        'sign_accuracy': 'share of answers on the right side of 0: a cost above it says unsafe',
        'perplexity': 'tokens it hesitates between, exp(loss)',
        'margin': 'how much higher it scores the answer that should score higher, in a pair',
        'chosen': 'implied reward of the chosen answer',
        'rejected': 'implied reward of the rejected answer',
        'reward_loss': 'loss of the reward model on the choices of the step',
        'reward_accuracy': 'share of choices of the step that the reward model gets right',
        'sampled_accuracy': 'share of choices right by summaries drawn as in training',
        'sampled_reward': 'mean reward of summaries drawn as in training',
        'seen_gain': 'accuracy of PAL less that of one model for all, new choices of known people',
        'new_gain': 'accuracy of PAL less that of one model for all, new people',
        'seen_gain_{bench}': 'accuracy over that of one model for all, new choices of seen people: {bench}',
        'new_gain_{bench}': 'accuracy over that of one model for all, new people: {bench}',
        'failed_data_sets': 'the number of data sets that a leakage test flags',
        'seen_pal': 'accuracy on new choices of known people: PAL, K chosen on validation',
        'new_pal': 'accuracy on new people: PAL, K chosen on validation',
        'winrate_psoups': 'prompts won against all other systems, ties half: P-Soups (merged policies)',
        '{pole}_policy_beats_base': 'prompts on which the policy of {pole} beats the base, ties half',
        'accuracy K={K}': 'share of choices right: PAL, K={K} prototypes',
        'loss K={K}': 'loss of: PAL, K={K} prototypes',
        'interval': '95 % interval over people of the share of choices right',
        'winrate': 'share of matches won against a player that moves at random, all games and seats',
        'winrate_{seat}': 'share of matches won against a player that moves at random, {seat}',
        'nashconv': 'how exploitable its Kuhn poker is: what both best responses gain, in chips (0: not at all)',
        'nashconv_last': 'the same of the last table alone, where the other is of the mean over training',
        'textarena_win': 'share of matches won in games of textarena against the policy before self-play and others',
        'crossplay': 'mean reward of the last policy against its past selves',
        '{match}_{opponent}_win': 'share of matches of {match} won against {opponent}',
        '{match}_{opponent}_{seat}_win': 'share of matches of {match} won against {opponent}, {seat}',
        '{match}_{opponent}_{seat}_reward': 'mean reward in {match} against {opponent}, {seat}',
        'safety_gain': 'share of unsafe answers to all requests, of the start less of those that learnt to defend',
        'attack_success': 'share of unsafe answers to harmful seeds that the attacker has rewritten',
        'plain_success': 'share of unsafe answers to harmful seeds as they are',
        'overrefusal': 'share of harmless seeds that are refused',
        'asr': 'success of attacks: share of unsafe answers to harmful seeds',
        'attacker_reward': 'mean reward of the attacker',
        'defender_reward': 'mean reward of the defender',
        'written_better': 'replies that are better for the summary than without it',
        'written_gap': 'how much better replies are for the summary, in reward',
    },
    COMPARED: {
        'none_winrate': 'control: share of matches won, learnt without a baseline',
        'none_winrate_{seat}': 'control: share of matches won, learnt without a baseline, {seat}',
        'none_nashconv': 'control: how exploitable it is, learnt without a baseline',
        'none_nashconv_last': 'control: the same of the last table alone',
        'none_value': 'control: what the first seat wins in self-play, learnt without a baseline',
        'shared_winrate': 'control: share of matches won, learnt with one baseline for both seats',
        'shared_winrate_{seat}': 'control: share of matches won, learnt with one baseline for both seats, {seat}',
        'shared_nashconv': 'control: how exploitable it is, learnt with one baseline for both seats',
        'shared_nashconv_last': 'control: the same of the last table alone',
        'shared_value': 'control: what the first seat wins in self-play, learnt with one baseline for both seats',
        'limit': 'the limit of the mean cost',
        'limit_{group}': 'the limit of the mean cost of {group}',
        '{judge}_{system}_limit': 'the limit of the mean cost',
        'greedy_to_least': 'the same of the greedy baseline: breadth-first trees, deepest first',
        'least_rounds': 'bound: rounds that every schedule takes at least',
        'bound': 'bound: the best F1 from what the person has told so far; above it is guessing',
        'guesser': 'control: F1 of one fixed guess, the commonest facts of the training people',
        'shuffled': 'control: F1 against the profile of somebody else, not about the person',
        'none_accuracy': 'control: share of choices right without a summary',
        'none_reward': 'control: mean reward without a summary',
        'random_accuracy': 'control: share of choices right by the summary of somebody at random',
        'random_reward': 'control: mean reward of the summary of somebody at random',
        'other_accuracy': 'control: share of choices right by the summary of a person of another kind',
        'other_reward': 'control: mean reward of the summary of a person of another kind',
        'accuracy_of_longer': 'control: share right of always taking the longer reply',
        'sign_accuracy_of_commoner': 'control: share of signs right of always giving the commoner one',
        'seen_{pal}': 'accuracy on new choices of known people: {pal}',
        'new_{pal}': 'accuracy on new people: {pal}',
        'asked_gain': 'accuracy gained by choosing what to ask over asking at random',
        'accuracy {pal}': 'share of choices right: {pal}',
        'loss {pal}': 'loss of: {pal}',
        'winrate_{soup}': 'prompts won against all other systems, ties half: {soup}',
        '{soup}_{other}_drop': 'prompts won, ties left out: {soup} against {other}',
        '{soup}_{other}_half': 'prompts won, ties half: {soup} against {other}',
        '{soup}_{other}_ties': 'share of ties: {soup} against {other}',
        '{pole}_rule_base': 'score by the rule of {pole}: the base',
        '{pole}_rule_policy': 'score by the rule of {pole}: its policy',
        'written_for_somebody_better': "control: replies better for somebody else's summary than without one",
        'written_for_somebody_gap': "control: how much better replies are for somebody else's summary",
        'seen_people_{part}': 'accuracy on known people, {part}',
        'new_people_{part}': 'accuracy on new people, {part}',
        'group_auc {model}': 'how well {model} tells known groups apart that it was not told (AUC; .5 is chance)',
        'front_{pole}_{to}_spearman': 'soups from {pole} to {to}: rank correlation of weight and score',
        'front_{pole}_{to}': 'soups from {pole} to {to}: weight, score by both rules',
        'chosen_prototypes': 'number of prototypes K chosen on validation, by split',
        'known_comparisons': 'numbers of known choices of a new person',
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
        'legal': 'share of answers that are legal moves',
        '{match}_legal': 'share of answers that are legal moves of {match}',
        'legal_mass': 'how likely it says a legal move of Kuhn poker in a usual spelling, mean over what it can know',
        'legal_mass_least': 'the same where it is least',
        'nashconv_least': 'NashConv under the wording of the prompt where it is least',
        'nashconv_most': 'NashConv under the wording of the prompt where it is most',
        'value': 'chips that the first seat of Kuhn poker wins in self-play (-0.056 in an equilibrium)',
        'return_first': 'what the first seat wins in self-play',
        'moves': 'moves of a match',
        '{match}_{opponent}_{seat}_draw': 'share of drawn matches of {match} against {opponent}, {seat}',
        'total': 'reward of this turn',
        'gap': 'reward of the chosen reply less that of the other, after this summary',
        'unsafe': 'share of answers that are unsafe',
        'called_unsafe': 'share of answers that it calls unsafe',
        'macro_auc': 'AUC of a single category, mean over the categories',
        'macro_precision': 'share of the answers it gives a category that have it, mean over the categories',
        'macro_recall': 'share of the answers with a category that it finds, mean over the categories',
        'macro_f1': 'F1 of a single category, mean over the categories',
        'support': 'answers that have a category',
        'threshold': 'probability above which an answer is given a category, chosen on answers that are not tested',
        'format': 'share of answers in the asked format: a profile, then a reply',
        'own_{function}': 'what your function {function} returned, before its weight',
        'profile': 'F1 of the profile it wrote against the true one, from 0 to 1',
        'f1': 'F1 of the profile it wrote against the true one, from 0 to 1; in moderation: of the unsafe answers',
        'precision': 'share of written facts that are true; in moderation: of answers called unsafe, those that are',
        'recall': 'share of true facts that were written, or of unsafe answers that are called so',
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
        'facts': 'facts in a written profile',
        'matched': 'facts in a written profile that are true',
        'words': 'words of a text',
        'sampled_words': 'words of a summary drawn as in training',
        'named': 'share of summaries that name the right kind',
        'misnamed': 'share of summaries that name only a wrong kind',
        'sampled_named': 'share of drawn summaries that name the right kind',
        'sampled_misnamed': 'share of drawn summaries that name only a wrong kind',
        'length': 'tokens of an answer',
        'truncated': 'share of answers cut at the length limit',
        'naturalness_judged': 'whether a language model judged naturalness beside the rules (1: yes)',
        'naturalness_auc': 'how well that model tells good replies from spoilt ones (1: always)',
        'ece': 'calibration error: how far its confidence is from how often it is right',
        'score_mean': 'mean score of all replies',
        'length_correlation': 'correlation of score and length (0: not led by length)',
        'length_correlation_in_pairs': 'the same, within pairs',
        'rows_chosen_longer': 'pairs in which the longer reply should score higher',
        'rows_chosen_shorter': 'pairs in which the shorter reply should score higher',
        'accuracy_chosen_longer': 'share right where the longer reply should score higher',
        'accuracy_chosen_shorter': 'share right where the shorter reply should score higher',
        'ranking_loss': 'the part of the loss that is of the order in pairs',
        'sign_loss': 'the part of the loss that is of the signs of costs',
        'sign_accuracy_safe': 'share of safe answers with a cost below 0',
        'sign_accuracy_unsafe': 'share of unsafe answers with a cost above 0',
        'cost_safe': 'mean cost of safe answers',
        'cost_least': 'lowest cost of an answer',
        'cost_unsafe': 'mean cost of unsafe answers',
        'auc': 'chance that an unsafe answer scores higher than a safe one (AUC; .5 is chance)',
        'score': 'score of a reply',
        'rule_{pole}': 'score by the rule of {pole}',
    },
    MACHINE: {
        'people': 'people in the evaluation',
        'rounds': 'rounds of the shortest schedule',
        'rounds_mean': 'rounds of a plan, mean over plans',
        'cost_mean': 'the same, with the last round counted by the share of a full one that it sends',
        'networks': 'networks that were planned for',
        'rows': 'rows, pairs or answers looked at',
        'labelled': 'answers that have a label',
        'written': 'replies written after a summary',
        'learnt_from': 'people that were learnt from',
        'people_moved': 'people kept from testing because training knows them',
        'people_left_out': 'people left out because they could not be read',
        'prompts_moved': 'prompts kept from testing because training has them',
        'moved': 'rows kept from testing because training has their prompt',
        'left_out': 'rows left out because they are too long',
        'unanswered': 'turns without an answer or a verdict',
        'samples': 'samples that count',
        'failed': 'samples that nobody could judge, and so do not count',
        'silent': 'users without an answer',
        'flat': '1: all samples were alike, so nothing was learnt in the step',
        'matches': 'matches of the step',
        'games': 'games of attacker and defender',
        'seeds': 'held-out harmful seeds that were tested',
        'turns': 'answers of the policy in the matches of the step',
        'baseline_{match}_{seat}': 'baseline of {match}, {seat}',
        'round': 'turn of the dialogue',
        'prompts': 'prompts of the step',
        '{judge}_{system}_prompts': 'prompts that {system} answered',
        '{judge}_{system}_samples': 'answers of {system}',
        'pairs': 'judged pairs of answers',
        'tested': 'pairs kept to test on',
        'multiplier': 'lambda: what costs count against rewards',
        'multiplier_{group}': 'lambda of {group}: what its costs count against rewards',
        'cost_step': '1: the step went by costs alone',
        'answers': 'answers of the step',
        'sources': 'policies merged in the step',
        'tokens': 'tokens learnt from',
        'verdicts': 'verdicts asked for',
        'failed_verdicts': 'verdicts that could not be had, counted as ties',
        '{pole}_pairs': 'labelled pairs: {pole}',
        '{pole}_ties': 'pairs without a winner: {pole}',
        '{pole}_failed': 'asked without an answer: {pole}',
        'grad_norm': 'size of the gradient',
        'reward_grad_norm': 'size of the gradient of the reward model',
        'critic_grad_norm': 'size of the gradient of the critic',
        'decoder_grad_norm': 'size of the gradient of the decoder',
        'policy_loss': 'loss of PPO',
        'ptx_loss': 'loss of supervised examples beside PPO',
        'value_loss': 'loss of the critic',
        'dynamics_nll': 'how unlikely what came next was to the dynamics heads (nats)',
        'explained_variance': 'how well the critic foresees rewards (1: all, 0: nothing)',
        'kl': 'how far the policy is from its start (KL divergence, nats a token)',
        'kl_coef': 'weight of that KL divergence in the objective',
        'approx_kl': 'how far one update moved the policy (KL divergence)',
        'clip_fraction': "share of tokens at PPO's limit of change",
        'ratio_deviation': "largest relative change of a token's probability before an update; 0 if it is the only one",
        'step_scale': 'what the line search left of steps within the trust region (0: the policy stays)',
        'first_ratio_deviation': 'the same before the first update; near 0 if training and sampling agree',
        'sampler_drift': 'how far sampled and trained log-probabilities differ, mean',
        'sampler_drift_max': 'how far sampled and trained log-probabilities differ, at most',
        'entropy': 'how undecided the policy is about the next token (nats)',
        'real_share': 'share of a batch that is no padding',
        'advantage': 'advantages: how much better a sample is than its like',
        'epochs': 'passes over the samples of a step',
        '{server}_requests': 'requests to {server}',
        '{server}_cached': 'answers of {server} that were known already',
        '{server}_unkept': 'answers of {server} that could not be kept',
        '{server}_adapted': 'settings that {server} takes otherwise or not at all',
        '{server}_prompt_tokens': 'tokens read by {server}',
        '{server}_completion_tokens': 'tokens written by {server}',
        '{server}_cost': 'cost of {server}, in the currency of its prices',
        'seconds_{phase}': '{phase}, wall seconds',
    },
}


@functools.cache
def meaning(name: str) -> Meaning:
    """The group and the words of a figure; of a name that nobody has explained `OTHER` and no words."""
    return _written(name) or _ended(name) or _of_split(name) or Meaning(OTHER, '')


def told(name: str, value: float, error: float | None = None) -> str:
    """A figure as a line of the console: its value, its standard error if it has one, what it is, and its name."""
    words, number = meaning(name).words, f'{value:.3f}' if error is None else f'{value:.3f} ± {error:.3f}'
    return f'{number}  {words} [{name}]' if words else f'{number}  {name}'


def explained(names: Iterable[str]) -> dict[str, str]:
    """The words of those names that have some."""
    return {name: words for name in names if (words := meaning(name).words)}


def _written(name: str) -> Meaning | None:
    """The meaning that `FIGURES` has: by the full name, else by one with parts for any word or for a known one."""
    if meant := _in_full(name):
        return meant
    for group, pattern, words in _patterns():
        parts = match.groupdict() if (match := pattern.fullmatch(name)) else None
        if parts and all(part in VOCABULARY.get(key, (part,)) for key, part in parts.items()):
            phrases = {key: VOCABULARY.get(key, {}).get(part, part.replace('_', ' ')) for key, part in parts.items()}
            return Meaning(group, words.format(**phrases))
    return None


def _in_full(name: str) -> Meaning | None:
    return next((Meaning(group, figures[name]) for group, figures in FIGURES.items() if name in figures), None)


def _ended(name: str) -> Meaning | None:
    """A figure with one of `ENDINGS`."""
    for ending, words in ENDINGS.items():
        if name.endswith(ending) and (meant := meaning(name.removesuffix(ending))).words:
            return Meaning(meant.group, words.format(meant.words))
    return None


def _of_split(name: str) -> Meaning | None:
    """A figure behind the name of a split of people, or of a method."""
    words = name.split('_')
    for k in range(1, len(words)):
        if meant := _in_full('_'.join(words[k:])):
            split = '_'.join(words[:k])
            return Meaning(meant.group, f'{meant.words}; {SPLITS.get(split, split.replace("_", " "))}')
    return None


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str], str]]:
    """Group, pattern and words of the names that have parts in braces."""
    return [
        (group, re.compile(re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>.+?)', re.escape(name))), words)
        for group, figures in FIGURES.items()
        for name, words in figures.items()
        if '{' in name
    ]

"""The meanings of the figures of runs, in plain English.

Steps, evaluations and samples write figures under short names. `meaning` gives the words of a name and the group that a
report shows it in. `CORE` has the words of what several methods write, or no method in particular; a method's own are
`WORDS` in its `figures.py`, and `words_of` puts both together. A name stands there as it is written, or with a part in
braces for any word, which the explanation repeats: by the readable names of `vocabulary` where the part is one of its
keys. Endings that all figures may have (`_se`, `_by_turn`, ...) and what stands before the figures of a split of people
are explained by themselves. A name that is not there has no words, and is shown as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

RECIPES = Path(__file__).parents[1] / 'recipes'
OPTIMISED = 'What was optimised'
COMPARED = 'What it can be compared with: bounds, controls, baselines'
PARTS = 'What it is made of: the parts of the judgement, and the texts'
MACHINE = 'How the training and the machine did'
OTHER = 'Other figures'
GROUPS = (OPTIMISED, COMPARED, PARTS, MACHINE, OTHER)
OWN = 'own_'  # before the name of a user's function, in metrics


class Meaning(NamedTuple):
    """The group in which a report shows a figure, and the words that explain it; empty words: there are none."""

    group: str
    words: str


class Rivals(NamedTuple):
    """The baselines that a verdict holds beside the figure of a method.

    Attributes:
      own: the words for the method.
      leads: by the name of a difference, the baseline's figure less the method's: the words for the baseline, and the
        name of its figure.
      beaten: whether the baselines that the method is clearly ahead of are told of, too.
      gains: by the name of a difference, that of the baseline's gain over what the level is held against.
      over: the words for that.
    """

    own: str
    leads: Mapping[str, tuple[str, str]]
    beaten: bool = False
    gains: Mapping[str, str] = {}
    over: str = ''


class Test(NamedTuple):
    """A test that answers the question of a verdict.

    Attributes:
      key: the name of its p-value.
      name: its name in words.
      yes, no: what it has shown, where the p-value is small, and what it has not, where it is not.
      alone: what is said of a level that is not beyond noise, where the p-value is small.
      worse: the same of a level that is beyond noise, and worse.
      beside: what is said of one that is, where the p-value is not small.
    """

    key: str
    name: str
    yes: str
    no: str
    alone: str = ''
    beside: str = ''
    worse: str = ''


class Question(NamedTuple):
    """The question that a verdict by a level answers, its answers where it is not yes, and the reason for the worse."""

    words: str = 'Did it learn?'
    unclear: str = 'Not beyond noise'
    worse: str = 'No, it is worse than without learning'
    reason: str = ''
    # The figures in words, with the names of an evaluation's figures in braces, in place of those of the level alone.
    figures: str = ''
    more: str = ''  # a further sentence on figures, where an evaluation has them
    # Words in place of an interval that has no width, as where two models are one and the same.
    exact: str = ''
    test: Test | None = None  # answers the question in place of the level, where an evaluation has its figure
    also: Test | None = None  # a further test, which is told beside the first one, where an evaluation has its figure


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
    """Words of figures, by their names: those of a method, those of all methods, or both together."""

    # The words of each name, by group.
    figures: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    # The readable names of what stands in a name for a part in braces, by that part.
    vocabulary: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    # The words of splits of people and of methods, by what stands before their figures.
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # The words of the steps of a phase.
    steps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # `levels` has what a verdict (`run/verdict.py`) tells of the last evaluation, and the value that needs no learning,
    # if the evaluation has no figure `<level>_of_commoner`. The first one that an evaluation has decides.
    levels: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    # The levels of which less is better.
    less: tuple[str, ...] = ()
    # The figures that are else held against what they were: the sign of a change for the better, and the words.
    changes: Mapping[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    # The figures of `levels` and `changes` that go from 0 to 1.
    shares: tuple[str, ...] = ()
    # Another figure that has to be told of a change, with its sign and its words.
    beside: Mapping[str, tuple[str, float, str]] = dataclasses.field(default_factory=dict)
    # The questions that a verdict by a level answers, where they are not whether a run has learnt.
    questions: Mapping[str, Question] = dataclasses.field(default_factory=dict)
    # The baselines that a verdict by a level tells of.
    rivals: Mapping[str, Rivals] = dataclasses.field(default_factory=dict)
    # The figures of evaluations that stand in a comparison of runs in place of those of steps, which tell less.
    compared: tuple[str, ...] = ()
    # The titles of the exhibits that a report does not fold away.
    unfolded: tuple[str, ...] = ()
    # What would tell more of a difference that is not beyond noise, where it is not more steps or seeds.
    more: str = ''
    # Uses of a finished run by the recipe: words, a command with {run} for the folder, and the page that explains it.
    uses: Mapping[str, tuple[tuple[str, str, str], ...]] = dataclasses.field(default_factory=dict)


PHASES = {  # of wall time
    'update': 'update: gradients and new weights',
    'rollout': 'rollout: sampling answers, and judging them',
    'annotate': 'annotate: log-probabilities and advantages of the samples',
    'compile': 'compile: making programs for this machine, paid once',
    'evaluate': 'evaluate: evaluations',
    'load': 'load: reading weights',
    'save': 'save: checkpoints',
    'read': 'read: the reward model reads',
    'reward': 'reward: reward models score, and judges label',
    'judge': 'judge: judges compare answers',
    'wait': 'wait: for users, judges and decode servers, in a run whose rollouts are ahead of its updates',
    'draw': 'draw: choosing what a step learns from',
    'learn': 'learn: updates of the decoder',
    'other': 'other: all else',
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

CORE = Words(
    figures={
        OPTIMISED: {
            'reward': 'mean reward, which training raises',
            'loss': 'mean loss, which training lowers',
            'accuracy': 'share of choices or labels that it gets right',
            'likelier': 'share of pairs whose chosen answer is likelier than the other, without a reference',
            'cost': 'mean cost of an answer, which the limit bounds',
            'mean_cost': 'mean of the last costs, which is compared with the limit',
            'mean_cost_{group}': 'mean of the last costs of {group}, which is compared with the limit of the group',
            'by_group': 'mean cost, limit and number of prompts of each group of prompts',
            'perplexity': 'tokens it hesitates between, exp(loss)',
            'margin': 'how much higher it scores the answer that should score higher, in a pair',
            'chosen': 'implied reward of the chosen answer',
            'rejected': 'implied reward of the rejected answer',
        },
        COMPARED: {
            'limit': 'the limit of the mean cost',
            'limit_{group}': 'the limit of the mean cost of {group}',
            'accuracy_of_longer': 'control: share right of always taking the longer reply',
            'accuracy_of_shorter': 'control: share right of always taking the shorter reply',
            'lead_of_{length}': 'how far always taking the {length} reply is ahead of the model (below 0: behind)',
        },
        PARTS: {
            f'{OWN}{{function}}': 'what your function {function} returned, before its weight',
            'words': 'words of a text',
            'length': 'tokens of an answer',
            'truncated': 'share of answers cut at the length limit',
            'ece': 'calibration error: how far its confidence is from how often it is right',
            'score_mean': 'mean score of all replies',
            'length_correlation': 'correlation of score and length (0: not led by length)',
            'length_correlation_in_pairs': 'the same, within pairs',
            'rows_chosen_longer': 'pairs in which the longer reply should score higher',
            'rows_chosen_shorter': 'pairs in which the shorter reply should score higher',
            'accuracy_chosen_longer': 'share right where the longer reply should score higher',
            'accuracy_chosen_shorter': 'share right where the shorter reply should score higher',
            'auc': 'chance that an unsafe answer scores higher than a safe one (AUC; .5 is chance)',
            'score': 'score of a reply',
        },
        MACHINE: {
            'people': 'people in the evaluation',
            'rows': 'rows, pairs or answers looked at',
            'moved': 'rows with the prompt of another row, which are trained or tested on with it, or left out',
            'left_out': 'rows left out because they are too long',
            'samples': 'samples that count',
            'failed': 'samples that nobody could judge, and so do not count',
            'prompts': 'prompts of the step, or of the evaluation',
            'multiplier': 'lambda: what costs count against rewards',
            'multiplier_{group}': 'lambda of {group}: what its costs count against rewards',
            'answers': 'answers of the step',
            'tokens': 'tokens learnt from',
            'grad_norm': 'size of the gradient',
            'lr': 'learning rate of the last update',
            'reward_grad_norm': 'size of the gradient of the reward model',
            'critic_grad_norm': 'size of the gradient of the critic',
            'policy_loss': 'loss of PPO',
            'ptx_loss': 'loss of supervised examples beside PPO',
            'value_loss': 'loss of the critic',
            'explained_variance': 'how well the critic foresees rewards (1: all, 0: nothing)',
            'kl': 'how far the policy is from its start (KL divergence, nats a token)',
            'kl_coef': 'weight of the KL divergence from the start in the objective',
            'approx_kl': 'how far one update moved the policy (KL divergence)',
            'clip_fraction': "share of tokens at PPO's limit of change",
            'ratio_deviation': (
                "largest relative change of a token's probability before an update; 0 if it is the only one"
            ),
            'step_scale': 'what the line search left of steps within the trust region (0: the policy stays)',
            'first_ratio_deviation': (
                "largest relative change of a token's probability before the first update; near 0 if training and "
                'sampling agree, and with products in bfloat16 some tenths, the largest of thousands of tokens'
            ),
            'sampler_drift': 'how far sampled and trained log-probabilities differ, mean',
            'sampler_drift_max': 'how far sampled and trained log-probabilities differ, at most',
            'sampler_ratio': "ratio of trained to sampled tokens' probabilities, mean",
            'sampler_ratio_max': "ratio of trained to sampled tokens' probabilities, at most",
            'age': 'updates between the weights that sampled a token and those that learn it, mean',
            'drifted_samples': 'samples left out since training and sampling differ too much (ppo.max_drift)',
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
    },
    vocabulary={'phase': PHASES},
    steps={'warm-up': 'imitation of examples, to learn the format'},
    levels={
        'auc': ('the chance that it has an unsafe held-out answer above a safe one (AUC)', 0.5),
        'accuracy': ('the accuracy on held-out examples', 0.5),
    },
    changes={
        'reward': (1.0, 'mean reward'),
        'likelier': (1.0, 'share of held-out pairs whose chosen answer is likelier than the other'),
        'loss': (-1.0, 'mean loss'),
    },
    shares=('accuracy', 'auc', 'likelier'),
)


@functools.cache
def words_of(recipe: str) -> Words:
    """The words for runs of a recipe: its method's, if its folder has a `figures.py`, before those of all methods.

    Raises:
      ValueError: there is no such method.
    """
    # A method in a user's file, FILE.py:make, has no words of its own.
    if ':' in recipe:
        return CORE
    method = RECIPES / recipe.partition('.')[0]
    if not method.is_dir() and not method.with_suffix('.py').is_file():
        raise ValueError(f'recipe={recipe!r} is no method of this package; see pal_jax/recipes')
    if not (method / 'figures.py').is_file():
        return CORE
    # The file alone is run: an import would bring the method with all that it trains by.
    special: Words = runpy.run_path(str(method / 'figures.py'))['WORDS']
    return Words(
        figures={group: {**special.figures.get(group, {}), **figures} for group, figures in CORE.figures.items()},
        vocabulary={**special.vocabulary, **CORE.vocabulary},
        splits={**special.splits, **CORE.splits},
        steps={**special.steps, **CORE.steps},
        levels={**special.levels, **CORE.levels},
        less=special.less,
        changes={**special.changes, **CORE.changes},
        shares=(*special.shares, *CORE.shares),
        beside={**special.beside, **CORE.beside},
        rivals=special.rivals,
        compared=special.compared,
        unfolded=special.unfolded,
        more=special.more,
        questions=special.questions,
        uses=special.uses,
    )


@functools.cache
def meaning(name: str, words: Words) -> Meaning:
    """The group and the words of a figure; of a name that nobody has explained `OTHER` and no words."""
    return _written(name, words) or _ended(name, words) or _of_split(name, words) or Meaning(OTHER, '')


def direction(name: str, words: Words) -> float:
    """1 where more of a figure is better, -1 where less is, 0 where the words of its method do not say."""
    if name in words.levels or name in words.compared:
        return -1.0 if name in words.less else 1.0
    return words.changes.get(name, (0.0,))[0]


def figure_line(name: str, value: float, words: Words, error: float | None = None) -> str:
    """A figure as a line of the console: its value, its standard error if it has one, what it is, and its name."""
    said, number = meaning(name, words).words, f'{value:.3f}' if error is None else f'{value:.3f} ± {error:.3f}'
    return f'{number}  {said} [{name}]' if said else f'{number}  {name}'


def explained(names: Iterable[str], words: Words) -> dict[str, str]:
    """The words of those names that have some."""
    return {name: said for name in names if (said := meaning(name, words).words)}


def _written(name: str, words: Words) -> Meaning | None:
    """The meaning that figures have: by the full name, else by one with parts for any word or for a known one."""
    if meant := _in_full(name, words):
        return meant
    for group, pattern, said in _patterns(words):
        parts = match.groupdict() if (match := pattern.fullmatch(name)) else None
        known = {key: words.vocabulary.get(key, {}) for key in parts or ()}
        # A part that has a vocabulary must be one of its words; any other part may be any word.
        if parts and all(part in known[key] or not known[key] for key, part in parts.items()):
            phrases = {key: known[key].get(part, part.replace('_', ' ')) for key, part in parts.items()}
            return Meaning(group, said.format(**phrases))
    return None


def _in_full(name: str, words: Words) -> Meaning | None:
    return next((Meaning(group, figures[name]) for group, figures in words.figures.items() if name in figures), None)


def _ended(name: str, words: Words) -> Meaning | None:
    """A figure with one of `ENDINGS`."""
    for ending, said in ENDINGS.items():
        if name.endswith(ending) and (meant := meaning(name.removesuffix(ending), words)).words:
            return Meaning(meant.group, said.format(meant.words))
    return None


def _of_split(name: str, words: Words) -> Meaning | None:
    """A figure behind the name of a split of people, or of a method."""
    parts = name.split('_')
    for k in range(1, len(parts)):
        if meant := _in_full('_'.join(parts[k:]), words):
            split = '_'.join(parts[:k])
            return Meaning(meant.group, f'{meant.words}; {words.splits.get(split, split.replace("_", " "))}')
    return None


@functools.cache
def _patterns(words: Words) -> list[tuple[str, re.Pattern[str], str]]:
    """Group, pattern and words of the names that have parts in braces."""
    return [
        (group, re.compile(re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>.+?)', re.escape(name))), said)
        for group, figures in words.figures.items()
        for name, said in figures.items()
        if '{' in name
    ]

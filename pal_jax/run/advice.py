"""The lines of a report that say what to do next: uses of the run, and what to try where it has not learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.run.glossary import Words
from pal_jax.run.metrics import METRICS, read_records
from pal_jax.run.progress import CUT
from pal_jax.run.summary import fifths, finite_values, main_part
from pal_jax.run.verdict import TOO_LITTLE, TRIALS, UNLIKE, RunVerdict, is_trial

# Uses of every run that has trained a policy.
POLICY = (
    ('talk with it', 'pal-jax chat --source={run}', 'docs/tutorials/serve.md'),
    ('write a folder for transformers', 'pal-jax export --workdir={run} --output=my_model', 'docs/howto/export.md'),
)
OF_DATA_TRIAL = (
    'This was a trial: what the methods learn is rough. The tests and effects that are of all data are those of the '
    'full run, without :smoke.'
)
SEEDS = 'more total_steps, more {units} to test on, or several seeds, which pal-jax compare puts side by side'
TRAIN = 'train the model itself: the command of this run without the variant for trials, in another --workdir'
LONGER = 'train longer: the command of this run with a larger number'
UNFINISHED = 'go on to the end, for this run has stopped or is under way: its command again, with the same folder'
TESTS = 'more {units} to test on'
ABOVE = 'above its limit', 'above its limits'
LIMIT = 'more total_steps, a higher constraint.limit, or a handler that moves faster (docs/howto/constraints.md)'
READ = 'The reward is what your own function pays: read whether the answers are what you meant.'
KL = 3.0  # nats of a token that are much


def uses(
    workdir: Path, config: Mapping[str, Any], words: Words, summary: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Uses of the run in a folder: words, a command, and the page that explains it. Before its end, `summary` is
    empty."""
    known = words.uses.get(config['recipe'], ())
    trained = POLICY if not words.uses and {'policy', 'optimizer'} <= config.keys() else ()
    # A run whose number of steps follows from something else goes on by passes over its rows, or not at all. The number
    # of passes may not change, but a number of steps may replace it. Where other things tell more, steps are not named.
    data = config.get('data')
    passes = data.get('epochs', 0) if isinstance(data, Mapping) else 0
    steps = config.get('total_steps', 0) or (len(read_records(workdir / METRICS)) if passes else 0)
    name, longer = summary.get('name', ''), []
    if summary.get('config', {}).get('total_steps') != config.get('total_steps') or not summary:
        longer = [(UNFINISHED, f'--workdir={workdir}', 'docs/howto/resume.md')]
    elif steps and not words.more:
        longer = [(LONGER, f'--config.total_steps={2 * steps}', 'docs/howto/resume.md')]
    if is_trial(name):
        longer = [(TRAIN, f'--config={name[: -len(TRIALS[0])]}', 'docs/start/first_run.md')]
    return [(use, command.format(run=workdir), page) for use, command, page in (*known, *trained, *longer)]


def of_trial(name: str, verdict: RunVerdict | None) -> str:
    """A sentence on a run of the config `name`, where its variant is one for trials; '' where it is not."""
    if not is_trial(name):
        return ''
    if verdict and verdict.of_data:
        return OF_DATA_TRIAL
    return f'This was a trial of the command, which hardly learns: leave {name[-6:]} out for a run that does.'


def advice(
    rows: Sequence[Mapping[str, Any]],
    verdict: RunVerdict | None,
    config: Mapping[str, Any],
    name: str = '',
    more: str = '',
) -> str:
    """A sentence on what to try, by a run's own figures; '' where it has learnt from no reward of one's own and few
    answers are cut, or where it has no verdict.

    `name` is that of the config, with its variant, and `more` is what tells more by the method's words, if they say so.
    """
    if sentence := of_trial(name, verdict):
        return sentence
    if verdict and verdict.answer.endswith(ABOVE):
        return f'The costs are above the limit: try {LIMIT}.'
    units = verdict.units if verdict else ''
    if verdict is None or verdict.answer.startswith(UNLIKE):
        return ''
    if verdict.answer.startswith('Yes'):
        reward = config.get('reward')
        to_read = READ if isinstance(reward, Mapping) and reward.get('function') else ''
        return ' '.join(filter(None, (to_read, _on_cut(rows, config, above=CUT))))
    if verdict.answer.startswith(TOO_LITTLE):
        return f'The tests are too few: give {TESTS.format(units=units)}.'
    steps = main_part(rows)
    last = {key: fifths(steps, key) for key in ('format', 'flat', 'alike', 'kl', 'reward') if finite_values(steps, key)}
    ends = {key: part['last'] for key, part in last.items()}
    if ends.get('format', 1.0) < 0.5:
        return f'Few answers have the format ({ends["format"]:.2f} of them): give more warmup.steps.'
    if line := _on_cut(rows, config, above=0.5):
        return line
    if abs(ends.get('kl', 0.0)) > KL and last.get('reward', {'gain': 1.0})['gain'] < 0:
        return f'The reward falls and the KL is {ends["kl"]:.1f}: give a larger ppo.kl_coef or a smaller optimizer.lr.'
    if (alike := max(ends.get('alike', 0.0), ends.get('flat', 0.0))) > 0.5:
        return (
            f'All answers to a prompt are paid alike in {alike:.0%} of the prompts: give more samples a prompt '
            '(n_samples_per_prompt) or a higher sampling.temperature.'
        )
    return f'To tell more: {more or (SEEDS if config.get("total_steps") else TESTS).format(units=units)}.'


def _on_cut(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], *, above: float) -> str:
    """A sentence where, at the end of a run, a larger share of the answers than `above` is cut; '' else."""
    steps = main_part(rows)
    share = fifths(steps, 'truncated')['last'] if finite_values(steps, 'truncated') else 0.0
    # The report of a run that is not finished has no config.
    most = config.get('sampling', {}).get('max_tokens')
    value = f'={most}' if most else ''
    line = f'{share:.0%} of the answers of the last steps are cut at sampling.max_tokens{value}: give more of them.'
    return line if share > above else ''

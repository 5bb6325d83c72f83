r"""Evaluates policies on people that they were not trained on, or on problems of mathematics.

  pal-jax evaluate --workdir=runs/rlpa                                         a run, before and after training
  pal-jax evaluate --config=rlpa --sources=base,reminder,oracle,runs/rlpa,runs/sft

  pal-jax evaluate --source=runs/spiral --task=gsm8k --rows=test.jsonl --limit=100                    any model

Options:
  --config=FILE[:VARIANT]   the config of the run, with the same --config.KEY=VALUE changes; default the settings that
                            the folder of --workdir keeps
  --workdir=FOLDER          the run; default runs/<name of the config>
  --step=N                  which checkpoint; default the last
  --sources=NAME,...        policies side by side instead: base, reminder and oracle are config.policy.source, asked
                            plainly, to be personal, and told who the user is; any other is the source of a model that
                            writes profile and reply, such as orbax:<workdir>
  --task=gsm8k|math500      the accuracy of the model --source, or of each of --sources, on the problems of --rows
  --rows=FILE               rows of question and answer (gsm8k), or of problem and answer (math500): .jsonl, .json,
                            .csv or .parquet, also packed (.gz), several with commas, a glob or a folder of shards
  --limit=N                 its first N problems; default all
  --answer_tokens=N         tokens of an answer, at temperature 0; default 512
  --slots=N                 problems that are worked on at once; default 16
  --output=FILE             a new JSONL file of all answers

Prints a table, and writes evaluation.json and, for dialogues, evaluation.png with figures by turn to the run's folder.
Of several policies it writes comparison.json, comparison.png, and comparison.jsonl with all dialogues. Intervals are
95 % bootstrap intervals over people. With --task it prints a JSON object for each model, with its accuracy and the 95 %
exact interval of it; the last \boxed{...} of a text is its answer, or in gsm8k without one its last number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pal_jax.commands.talking import CACHE, SOURCE, SOURCES, open_decoder
from pal_jax.data import holdouts
from pal_jax.data.thoughts import spoken_reply
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.decode.requests import Request
from pal_jax.judges.local_model import LocalModel
from pal_jax.judges.problems import TASKS, Problem, question_chat, read_problems
from pal_jax.judges.problems import measure as measure_answers
from pal_jax.models.files import sources
from pal_jax.recipes.rlpa import dialogue as env
from pal_jax.recipes.rlpa.baselines import BASELINES, Complete, plain_model
from pal_jax.recipes.rlpa.personalization import Respond
from pal_jax.recipes.rlpa.restraint import FIGURES
from pal_jax.recipes.rlpa.settings import Dialogues, of_dialogues
from pal_jax.recipes.rlpa.turns import Sampler, make_turn_sampler
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.run import cli, devices, inputs, stores
from pal_jax.run.curve import plot_alignment, plot_turns
from pal_jax.run.forecast import counted
from pal_jax.run.glossary import Words, meaning, words_of
from pal_jax.run.loop import evaluate_checkpoint
from pal_jax.run.metrics import EVALS, plain, read_records
from pal_jax.run.outputs import check_file, whole_file
from pal_jax.run.recipe import EVALUATION, Context, Evaluation
from pal_jax.run.runs import read_settings
from pal_jax.run.settings import Run, to_dict
from pal_jax.run.stages import settings_in
from pal_jax.run.summary import by_stage
from pal_jax.run.trained import open_run
from pal_jax.run.workdir import read_run
from pal_jax.types import Chat, ChatModel, Completion, Dialogue, Sample, Sampling

STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the last by default.')
TASK = flags.DEFINE_enum('task', None, [*TASKS], 'Problems of mathematics instead of people.')
ROWS = flags.DEFINE_string('rows', '', 'Problems: a file, several with commas, a glob or a folder.')
LIMIT = flags.DEFINE_integer('limit', None, 'How many of its problems; all by default.', lower_bound=1)
ANSWER_TOKENS = flags.DEFINE_integer('answer_tokens', 512, 'Tokens of an answer.', lower_bound=1)
SLOTS = flags.DEFINE_integer('slots', 16, 'Problems at once.', lower_bound=1)
# The progress bar moves when so many problems for each slot are done.
CHUNK = 2
COMPARED = ('al', 'n_ir', 'n_r2', 'reward', 'profile', 'precision', 'recall', 'response', 'strict')

Records = dict[str, dict[str, Any]]


def main() -> None:
    """Evaluate a run, the policies of --sources, or models on a task, and write and print the figures."""
    if TASK.value:
        return solve(TASK.value, SOURCES.value or [SOURCE.value])
    if cli.CONFIG.value is None and (cli.WORKDIR.value is None or SOURCES.value or cli.CHANGES.value):
        raise cli.Fault(
            'no configuration; give one, such as --config=rlpa, or --workdir=FOLDER of a run alone, or a --task for '
            'any --source'
        )
    workdir = cli.workdir()
    if SOURCES.value:
        return compare(workdir)
    cli.faults(check_outputs, workdir, 'evaluation')
    stages = cli.faults(evaluate, workdir)
    if jax.process_index() == 0:
        cli.faults(write, stages, workdir / 'evaluation.json')
        if any('f1_by_turn' in record for record in stages.values()):
            cli.faults(draw, plot_turns, stages, workdir / 'evaluation.png')
        cli.console().print(as_table(stages, words_of(read_run(workdir)['recipe'])))
    return None


def evaluate(workdir: Path) -> Records:
    """The evaluations that the run made before the step of --step, and a new one of this step, by name.

    Raises:
      ValueError: the folder has no checkpoints, or not of this step.
    """
    settings = read_settings(workdir) if cli.CONFIG.value is None else settings_in(cli.settings(), workdir)
    step, evaluation = evaluate_checkpoint(settings, workdir, STEP.value, cli.place())
    earlier = [r for r in read_records(workdir / EVALS) if r['step'] < step and r['stage'] != 'final']
    stages: Records = {stage: dict(record) for stage, record in by_stage(earlier).items()}
    return {**stages, f'step {step}': {'step': step, **evaluation.record}}


def compare(workdir: Path) -> None:
    """Evaluate the policies of --sources one after the other, and write and print their comparison."""
    if cli.faults(cli.place):
        raise cli.Fault('--sources runs in one process; leave out --processes, or evaluate one run by its --workdir')
    cli.faults(workdir.mkdir, parents=True, exist_ok=True)
    cli.faults(check_outputs, workdir, 'comparison')
    devices.initialize(workdir / 'compiled')
    evaluations = cli.faults(evaluate_sources, cli.settings(), SOURCES.value)
    records = {name: dict(evaluation.record) for name, evaluation in evaluations.items()}
    cli.faults(write, records, workdir / 'comparison.json')
    dialogues = ({'source': name, **talk} for name, evaluation in evaluations.items() for talk in evaluation.dialogues)
    cli.faults(write_lines, dialogues, workdir / 'comparison.jsonl')
    cli.faults(draw, plot_alignment, records, workdir / 'comparison.png')
    cli.console().print(as_comparison(records, words_of(cli.settings().recipe)))


def evaluate_sources(settings: Run, names: Sequence[str]) -> dict[str, Evaluation]:
    """The record and the dialogues of each policy. All policies meet the same people, users and judges.

    Raises:
      ValueError: a run has trained on another file of people by the same name.
      ValueError, RuntimeError: the model of a source cannot be opened.
    """
    settings = of_dialogues(settings)
    world, evaluations = make_world(settings), {}
    rounds = settings.eval.rounds or settings.dialogue.rounds
    opened = {name: settings.policy.source if name in BASELINES else name for name in dict.fromkeys(names)}
    files = inputs.look(to_dict(settings))
    people = {key: item for key, item in files.items() if key.startswith('dialogue.')}
    for kind, _, run in (source.partition(':') for source in opened.values()):
        # Where the file of people has changed, the run may have trained on people of the evaluation.
        if kind == 'orbax':
            inputs.check_shared(people, Path(run))
    for source in dict.fromkeys(opened.values()):
        decoder, tokenizer = open_decoder(settings, source)
        # Policies of one model share its decoder.
        for name in (item for item in opened if opened[item] == source):
            if name in BASELINES:
                answer = plain_model(make_complete(settings, tokenizer, decoder), BASELINES[name], world.topics)
            else:
                answer = in_format(settings, make_turn_sampler(settings, world.system, tokenizer, decoder))
            evaluations[name] = Evaluation(*world.evaluate(logged(name, answer), rounds=rounds))
    return {name: evaluations[name] for name in opened}


def logged(name: str, answer: Respond) -> Respond:
    """The answers of a policy, with a line on stderr for each turn, since all turns together take minutes."""

    def respond(dialogues: Sequence[Dialogue], turn: int) -> list[Sample]:
        print(f'{name}: turn {turn + 1} of {counted(len(dialogues), "dialogue")}', file=sys.stderr, flush=True)
        return answer(dialogues, turn)

    return respond


def in_format(settings: Dialogues, sample_turns: Sampler) -> Respond:
    """The answers of a policy that writes profile and reply in one text, sampled as its own run evaluates it."""
    return lambda dialogues, seed: sample_turns(dialogues, 1, (settings.seed, EVALUATION, seed))


def make_complete(settings: Dialogues, tokenizer: Tokenizer, decoder: Decoder) -> Complete:
    """A function that answers chats with the model, sampled as `config.sampling` says."""
    sampling, longest = settings.sampling, settings.dialogue.prompt_max_len

    def complete(chats: Sequence[Chat], seed: int) -> list[Completion]:
        seeds = np.random.SeedSequence([settings.seed, seed]).generate_state(len(chats), np.uint64).tolist()
        prompts = list(map(prompt_of, chats))
        completions = decoder([Request(p, sampling, s) for p, s in zip(prompts, seeds, strict=True)])
        return [replace(c, text=tokenizer.thinking(p, c.text)) for p, c in zip(prompts, completions, strict=True)]

    def prompt_of(chat: Chat) -> tuple[int, ...]:
        # The system message stays, whatever is left out.
        system = [message for message in chat[:1] if message['role'] == 'system']

        def render(exchange: Chat) -> tuple[int, ...]:
            return tuple(tokenizer.chat([*system, *exchange]))

        exchange = chat[len(system) :]
        # A chat of more than `dialogue.prompt_max_len` tokens loses its oldest exchanges, as it does for a policy that
        # writes the format.
        return render(
            env.newest_turns(exchange, lambda newest: len(render(newest)) <= longest) if longest else exchange
        )

    return complete


def solve(task: str, names: Sequence[str]) -> None:
    """Print the accuracy of models on problems of mathematics, and write their answers to --output."""
    if not ROWS.value:
        raise cli.Fault(f'--task={task} reads its problems from a file; name it with --rows=FILE')
    output, problems = cli.output_file(), cli.faults(read_problems, ROWS.value, task)[: LIMIT.value]
    if fewer := holdouts.fewer('--limit', LIMIT.value or 0, len(problems), f'{ROWS.value} has no more'):
        print(fewer.strip(), file=sys.stderr)
    devices.initialize(Path(CACHE).expanduser())
    mesh = devices.make_mesh()
    answers: list[dict[str, Any]] = []
    for name in dict.fromkeys(names):
        source = cli.faults(sources.resolve, name, open_run=lambda run: open_run(run, Context(mesh)))
        model = LocalModel(source, mesh, Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS.value), slots=SLOTS.value)
        # A problem that is too long for the model, or a thought that does not end, has no answer.
        texts = [
            spoken_reply(text or '') or '' for text in cli.faults(model_answers, model, problems, f'{name} on {task}')
        ]
        cli.print_json({'source': name, 'task': task, **measure_answers(texts, problems, task)})
        rows = zip(problems, texts, strict=True)
        answers += [{'source': name, 'question': p.question, 'answer': p.answer, 'said': text} for p, text in rows]
    if output:
        cli.faults(write_lines, answers, output)


def model_answers(model: ChatModel, problems: Sequence[Problem], title: str) -> list[str | None]:
    """A model's answers to problems, with a progress bar on stderr."""
    size, answers = CHUNK * SLOTS.value, []
    for start in track(range(0, len(problems), size), title, console=Console(stderr=True)):
        answers += model([question_chat(problem) for problem in problems[start : start + size]], 0)
    return answers


# --- what is shown --------------------------------------------------------------------------------------------------


def check_outputs(workdir: Path, name: str) -> None:
    """Raise ValueError where a file of this name exists that the package did not write."""
    for suffix in ('json', 'jsonl', 'png'):
        if (path := workdir / f'{name}.{suffix}').exists():
            check_file(path, named_here=True)


def write(records: Records, path: Path) -> None:
    """Write records as one JSON object, and print the file's name."""
    with whole_file(path, named_here=True) as partial:
        partial.write_text(json.dumps(plain(records), indent=2) + '\n', encoding='utf-8')
    print(stores.shown(path))


def write_lines(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write records as JSON lines, and print the file's name."""
    lines = (json.dumps(plain(record), ensure_ascii=False) + '\n' for record in records)
    with whole_file(path, named_here=True) as partial:
        # A model may write half of a surrogate pair, which cannot be encoded.
        partial.write_text(''.join(lines), encoding='utf-8', errors='backslashreplace')
    print(stores.shown(path))


def draw(plot: Callable[[Records, Path], None], records: Records, path: Path) -> None:
    """Write the picture that `plot` makes of records, and print the file's name."""
    with whole_file(path, named_here=True) as partial:
        plot(records, partial)
    print(stores.shown(path))


def as_table(stages: Records, words: Words) -> Table:
    """A table with a column for each stage and a row for each figure and its meaning. Lists are figures by turn."""
    table = Table('figure', *stages, 'what it is')
    names = dict.fromkeys(name for record in stages.values() for name in record)
    for name in names:
        # Times and intervals have no rows of their own.
        if not name.startswith('seconds_') and name != 'stage' and not name.endswith('intervals'):
            table.add_row(name, *(cell(record.get(name)) for record in stages.values()), meaning(name, words).words)
    return table


def as_comparison(records: Records, words: Words) -> Table:
    """A table with a column for each policy and a row for each figure, its interval below it, by split of people.

    Alignment (AL) and F1 of the profile have a row for each turn.
    """
    table = Table('people', 'figure', *records, 'what it is')
    first = next(iter(records.values()))
    for split in (key.removesuffix('intervals') for key in first if key.endswith('intervals')):
        for number, key in enumerate(COMPARED):
            intervals = (record[f'{split}intervals'][key] for record in records.values())
            values = (record[split + key] for record in records.values())
            cells = [f'{cell(v)}\n{cell(i)}' for v, i in zip(values, intervals, strict=True)]
            table.add_row('' if number else split.rstrip('_') or 'heldout', key, *cells, meaning(key, words).words)
        unanswered = (cell(record[f'{split}unanswered']) for record in records.values())
        table.add_row('', 'unanswered', *unanswered, meaning('unanswered', words).words)
        for key, title in (('al', 'AL'), ('f1', 'F1')):
            curves = [record[f'{split}{key}_by_turn'] for record in records.values()]
            for turn, levels in enumerate(zip(*curves, strict=True), 1):
                table.add_row(
                    '',
                    f'{title}({turn})',
                    *map(cell, levels),
                    '' if turn > 1 else meaning(f'{key}_by_turn', words).words,
                )
        table.add_section()
    # Scripted dialogues, which all policies have or none.
    for number, key in enumerate(FIGURES if FIGURES[0] in first else ()):
        cells = [f'{cell(record[key])}\n{cell(record["intervals"][key])}' for record in records.values()]
        table.add_row('' if number else 'scripted', key, *cells, meaning(key, words).words)
    return table


def cell(value: Any) -> str:
    """A value as the text of a table's cell: numbers with three digits, lists with spaces between."""
    if isinstance(value, list):
        return ' '.join(map(cell, value))
    return f'{value:.3g}' if isinstance(value, float) else '' if value is None else str(value)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)

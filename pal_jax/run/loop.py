"""The training loop of every method: stages in their order, with steps, evaluations, checkpoints and exports."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from pal_jax.run import checkpoint, devices, inputs, outputs, own, processes, stores, verdict
from pal_jax.run.advice import of_trial
from pal_jax.run.checkpoint import flatten
from pal_jax.run.faults import Fault, faults
from pal_jax.run.forecast import counted
from pal_jax.run.glossary import Words, words_of
from pal_jax.run.metrics import MetricsWriter, require_wandb
from pal_jax.run.processes import Place
from pal_jax.run.progress import PATIENCE, Progress, evaluation_text
from pal_jax.run.recipe import KEPT, Context, Evaluation, Host, Plan, Recipe, check_recipe
from pal_jax.run.runs import is_finished, recipe_module
from pal_jax.run.settings import Run, to_dict
from pal_jax.run.stages import may_change, unfinished
from pal_jax.run.stopping import StopListener, exit_status, stopped_at
from pal_jax.run.summary import summarize
from pal_jax.run.trained import folders_read
from pal_jax.run.workdir import REPORT, held

Show = Callable[[Iterable[Mapping[str, Any]]], None]
Log = Callable[[str], None]
# A function that is called after each step with its number and its figures. The run stops where it returns True.
Stops = Callable[[int, Mapping[str, Any]], bool]


def never(step: int, figures: Mapping[str, Any]) -> bool:
    """False after every step: the run goes to its end."""
    return False


def train_all(
    settings: Run,
    workdir: Path,
    place: Place | None = None,
    name: str = '',
    changed: Collection[str] = (),
    stops: Stops = never,
) -> int:
    """Train the stages of a run that are not finished, in a process at its place among several.

    Args:
      name: that of the config, for titles.
      changed: keys of own functions that may have changed since the run began.
      stops: see `Stops`.

    Returns:
      The exit status: 0, or that of a process ended by a signal where a signal stopped the run.

    Raises:
      Fault: an input is wrong, or a model or a file cannot be had.
    """
    for key in changed:
        if not own.parts_of(flatten(to_dict(settings)).get(key)):
            raise Fault(f'changed={key!r} is no key of an own function; name the key of one that has changed')
    before, stages = '', unfinished(settings, workdir, changed)
    while stage := faults(next, stages, None):
        if before not in ('', stage.settings.recipe):
            # A stage of another kind does not use the compiled programs of the last one.
            jax.clear_caches()
        faults(initialize, stage.settings, stage.folder, place)
        with contextlib.ExitStack() as stack:
            faults(stack.enter_context, held(stage.folder))
            status = train(stage.settings, stage.folder, name, changed, stops)
            # A stage also writes beside its folder.
            processes.share(stage.folder.parent if stage.settings.part_of else stage.folder)
            if status:
                return status
        if stage.settings.part_of and jax.process_index() == 0:
            # Pages bring libraries of pictures, whose import no error before them should wait for.
            from pal_jax.run.overview import write_front_page

            Progress().log(f'all stages: {faults(write_front_page, stage.folder.parent)}')
        before = stage.settings.recipe
    return 0


def train(settings: Run, workdir: Path, name: str = '', changed: Collection[str] = (), stops: Stops = never) -> int:
    """Train one run, or one stage of a run, of the config `name`.

    The result is 0, or the exit status where a signal or `stops` stopped the run. `changed` is as in `train_all`.
    """
    progress, rollouts, notes = Progress(), [], list[str]()
    # An export that could not be written is told before the training.
    if settings.export and not faults(is_finished, settings, workdir):
        faults(outputs.check_folder, workdir / 'export', folders_read(to_dict(settings)))
    recipe = faults(
        prepare,
        settings,
        workdir,
        progress,
        show=rollouts.extend,
        log=lambda text: notes.extend(text.splitlines()),
        changed=changed,
    )
    plan, keep = recipe.plan, settings.checkpoint.keep
    checkpoints = faults(checkpoint.Checkpoints, workdir, plan.abstract, keep=keep, log=progress.log)
    restored = faults(checkpoints.restore)
    if restored and restored[2] >= plan.total_steps and (workdir / REPORT).exists():
        progress.log(f'{workdir} is finished: {workdir / REPORT}; a larger total_steps goes on')
        return 0
    title = workdir.name if settings.part_of else name.partition(':')[0] or settings.recipe
    progress.announce(title, plan.phases or {'': plan.total_steps}, plan.evaluations, notes)
    with StopListener(progress.log) as stopping:
        try:
            stopped = faults(
                run, settings, workdir, recipe, progress, checkpoints, restored, stopping, rollouts, notes, name, stops
            )
        except Fault:
            # Several processes would wait here for one that has no fault.
            if not processes.joined():
                with contextlib.suppress(Exception):
                    checkpoints.close()
            raise
        finally:
            plan.close()
        checkpoints.close()
    return exit_status(stopped) if stopped else 0


def prepare(
    settings: Run, workdir: Path, progress: Progress, *, show: Show = lambda records: None, log: Log | None = None,
    changed: Collection[str] = (),
) -> Recipe:  # fmt: skip
    """The recipe of a run. Faults that show before a weight is read raise ValueError or RuntimeError here."""
    config, log = to_dict(settings), log or progress.log
    progress.time_compilation()
    checkpoint.check_processes(config)
    checkpoint.check_config(workdir, config, free=may_change(settings, workdir))
    read = inputs.watched(config, workdir, progress.log, changed)
    for key, entry in read.items():
        if entry.changes:
            named, lines = inputs.without_number(key), '; '.join(entry.changes)
            log(f'{named}={entry.value!r} has changed since the run began: {lines}')
    if settings.metrics.wandb:
        require_wandb(settings.metrics.wandb)
    mesh = devices.make_mesh(**dataclasses.asdict(settings.mesh))
    context = Context(mesh, progress.phase, show, workdir, checkpoint.kept_in(workdir), log)
    recipe = recipe_module(settings.recipe).make(settings, context)
    check_recipe(recipe, settings.recipe)
    keep = recipe.plan.keep
    # A run keeps the hashes of what it reads beside the recipe's own files.
    plan = recipe.plan._replace(keep=lambda folder: (inputs.save(folder, read), keep(folder)))
    return dataclasses.replace(recipe, plan=plan)


def initialize(settings: Run, workdir: Path, place: Place | None) -> None:
    """Join the other processes, and keep compiled programs in the run's folder; stages share the one above theirs."""
    devices.initialize((workdir.parent if settings.part_of else workdir) / 'compiled', place)


def run(
    settings: Run, workdir: Path, recipe: Recipe, progress: Progress, checkpoints, restored, stopping: StopListener,
    rollouts: list[Mapping[str, Any]], notes: Iterable[str] = (), name: str = '',
    stops: Stops = never,
) -> int:  # fmt: skip
    """Make the steps that remain, then the report and the exports. The result is the signal that came, or 0."""
    plan = recipe.plan
    if not restored and jax.process_index() == 0:
        plan.keep(workdir / KEPT)
    # All processes wait for this file.
    checkpoint.write_config(workdir, to_dict(settings))
    if jax.process_index() == 0:
        # A report says that a run is finished.
        (workdir / REPORT).unlink(missing_ok=True)
    if restored:
        state, host, first = restored[0], plan.resume(restored[1]), restored[2]
        checkpoints.set_aside_after(first)
        progress.log(f'resuming {workdir} at step {first} of {plan.total_steps}')
    else:
        with progress.phase('load'), progress.silent('loading the first state', after=PATIENCE):
            (state, host), first = recipe.init(), 0
    with (
        MetricsWriter(workdir, first, wandb=settings.metrics.wandb or None) as writer,
        progress.start(plan.total_steps, first),
    ):
        saved, kept, i, mended = time.monotonic(), first, first, inputs.mended(workdir)
        while i <= plan.total_steps:
            with rescued(workdir, checkpoints, i, i - kept, state, plan, host, progress.log):
                if stage := plan.stage(i):
                    evaluate(recipe, state, stage, i, writer, progress, words_of(settings.recipe), mended)
                    push(workdir)
                if i == plan.total_steps:
                    break
                with progress.step(i):
                    state, host, phase, metrics = recipe.step(state, host, i)
            seconds = progress.take_seconds()
            writer.write(i, phase, metrics | seconds)
            writer.rollouts(i, phase, rollouts)
            rollouts.clear()
            progress.done(i, phase, metrics | seconds)
            following = plan.after(host, i)
            every = settings.checkpoint.every
            # A checkpoint is due where a multiple of `every` lies between this step and the next.
            due = following // every > i // every or following == plan.total_steps
            # A run that `stops` ends saves and ends as one that a signal stops.
            wish = signal.SIGTERM if stops(i, {'phase': phase, **metrics, **seconds}) else stopping.wish
            stop, late = agree(wish, time.monotonic() - saved > 60 * settings.checkpoint.minutes)
            if due or late or stop:
                with progress.phase('save'):
                    # A resumed run does not write the steps before its checkpoint again.
                    push(workdir)
                    checkpoints.save(following, state, plan.pack(host), metrics.get('reward'))
                saved, kept = time.monotonic(), following
            if stop:
                checkpoints.wait()
                progress.log(stopped_at(following, plan.total_steps))
                return stop
            i = following
        checkpoints.wait()
    finish(settings, workdir, recipe, state, progress, notes, name)
    # A signal since the last step stops before the next stage.
    return agree(stopping.wish, False)[0]


@contextlib.contextmanager
def rescued(
    workdir: Path, checkpoints: checkpoint.Checkpoints, i: int, unsaved: int, state, plan: Plan, host: Host, log: Log
) -> Iterator[None]:
    """A block whose failure first saves the `i` steps before it, of which the last `unsaved` are in no checkpoint.

    So a user's function that has failed is mended, and the run goes on. Nothing is saved where the block has used up
    the state, or where samples that are under way fail alike.
    """
    try:
        yield
    except (ValueError, RuntimeError):
        # Several processes would wait here for one that has not failed.
        if unsaved and not processes.joined():
            with contextlib.suppress(Exception):
                # A resumed run does not write the steps before its checkpoint again.
                push(workdir)
                checkpoints.save(i, state, plan.pack(host))
                checkpoints.wait()
                log(
                    f'the {counted(i, "step")} before the failure are saved; the same command goes on from there, '
                    'with --changed=KEY if you mend an own function'
                )
        raise


def push(workdir: Path) -> None:
    """Write what has changed in the folder of a run to its store, if it is in one; the first process writes."""
    if jax.process_index() == 0:
        stores.push(workdir.absolute())


def agree(stop: int, late: bool) -> tuple[int, bool]:
    """The signal that any process has had, 0 for none, and the first one's `late`, so that all decide the same."""
    wishes = processes.exchange('step', [stop, late])
    return next((wish for wish, _ in wishes if wish), 0), wishes[0][1]


def evaluate_checkpoint(
    settings: Run, workdir: Path, step: int | None = None, place: Place | None = None
) -> tuple[int, Evaluation]:
    """The number of the step of a run's checkpoint, by default the last one, and an evaluation of it.

    Raises:
      ValueError: the folder has no checkpoints, or not of this step.
    """
    if not (workdir / checkpoint.FOLDER).is_dir():
        raise ValueError(f'{workdir} has no checkpoints; train first, or name the run with --workdir')
    initialize(settings, workdir, place)
    recipe = prepare(settings, workdir, progress := Progress())
    state, host, step = checkpoint.Checkpoints(workdir, recipe.plan.abstract, read_only=True).read(step)
    recipe.plan.resume(host)
    with progress.silent(f'evaluating {workdir} at step {step}'):
        return step, recipe.evaluate(state, 'final')


def evaluate(
    recipe: Recipe, state, stage: str, i: int, writer: MetricsWriter, progress: Progress, words: Words,
    mended: Mapping[str, int],
) -> None:  # fmt: skip
    """Evaluate once, and write the figures to the run's files and to the console.

    `mended` has the numbers of changes of own functions until then, and makes figures of other functions known as such.
    """
    with progress.silent(f'evaluating ({stage})'):
        evaluation = recipe.evaluate(state, stage)
    progress.evaluated(seconds := progress.take_seconds())
    by = {'mended': dict(mended)} if mended else {}
    writer.evaluation({'step': i, 'stage': stage, **by, **evaluation.record, **seconds})
    writer.dialogues({'step': i, 'stage': stage, **dialogue} for dialogue in evaluation.dialogues)
    writer.exhibits(i, stage, evaluation.exhibits)
    writer.files(evaluation.files)
    progress.log(evaluation_text(stage, evaluation.record, evaluation.exhibits, recipe.plan.shown, words))


def finish(
    settings: Run, workdir: Path, recipe: Recipe, state, progress: Progress, notes: Iterable[str] = (), name: str = ''
) -> None:
    """Write exports, summary and report from the run's last state and its files. `notes` are lines on its data."""
    if settings.export and recipe.plan.trained:
        recipe.plan.trained.write(state, workdir)
    if jax.process_index() == 0:
        notes = [*notes, *(recipe.plan.trained.notes if recipe.plan.trained else ())]
        finished = time.strftime('%Y-%m-%d %H:%M:%S')
        summarize(workdir, {'name': name, 'config': to_dict(settings), 'finished': finished, 'notes': notes})
        # See `train_all`.
        from pal_jax.run.report import write_report

        write_report(workdir)
        judged = verdict.of_folder(workdir)
        trial = f'{sentence}\n' if (sentence := of_trial(name, judged)) else ''
        progress.log(f'{judged.line if judged else ""}{trial}report: {workdir / REPORT}')

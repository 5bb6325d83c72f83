"""Wall time by phase, on a clock that the test turns, and what is shown of a run."""

from __future__ import annotations

import contextlib
import io
import time

import jax
import pytest
from rich.console import Console

from pal_jax.run.forecast import Forecast, spoken
from pal_jax.run.glossary import CORE
from pal_jax.run.progress import Progress, Stopwatch, describe, evaluation_text
from pal_jax.types import Exhibit


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_belongs_to_one_phase():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 1
    with watch.phase('update'):
        clock.now += 2
        with watch.phase('save'):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert watch.take_seconds() == {'seconds_other': 17.0, 'seconds_update': 10.0, 'seconds_save': 4.0}


def test_seconds_are_taken_once_and_a_phase_may_span_two_takes():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.phase('rollout'):
        clock.now += 1
        assert watch.take_seconds() == {'seconds_other': 0.0, 'seconds_rollout': 1.0}
        clock.now += 2
    assert watch.take_seconds() == {'seconds_rollout': 2.0, 'seconds_other': 0.0}


def test_compiling_is_a_phase_of_its_own_wherever_it_happens():
    clock = Clock()
    progress = Progress(console=Console(file=io.StringIO()), clock=clock)
    progress.time_compilation()
    with progress.phase('update'):
        clock.now += 8
        for stage in ('jaxpr_to_mlir_module', 'backend_compile'):
            jax.monitoring.record_event_duration_secs(f'/jax/core/compile/{stage}_duration', 2.0)
        jax.monitoring.record_event_duration_secs('/jax/core/compile/jaxpr_trace_duration', 1.0)
        clock.now += 1
    assert progress.take_seconds() == {'seconds_other': 0.0, 'seconds_update': 5.0, 'seconds_compile': 4.0}


def test_a_phase_that_fails_is_closed():
    clock = Clock()
    watch = Stopwatch(clock)
    with contextlib.suppress(KeyError), watch.phase('rollout'):
        clock.now += 1
        raise KeyError
    clock.now += 2
    assert watch.take_seconds() == {'seconds_other': 2.0, 'seconds_rollout': 1.0}


def test_a_log_gets_a_line_a_step_with_the_time_left():
    console = Console(file=io.StringIO(), width=40)
    with Progress(console=console).start(10, first=7) as progress:
        progress.done(7, 'rlpa', {'reward': 0.41234, 'kl': 0.01, 'seconds_update': 60.0, 'seconds_other': 30.0})
        progress.done(8, 'rlpa', {'reward': 0.5, 'seconds_update': 30.0})
        progress.done(9, 'rlpa', {'reward': 0.5, 'seconds_update': 30.0, 'seconds_compile': 3.0})
    assert output(console).splitlines() == [
        'rlpa 8/10  reward 0.412  kl 0.01  90.0 s  up to 3 min left',
        'rlpa 9/10  reward 0.5  30.0 s  about 30 s left',
        'rlpa 10/10  reward 0.5  33.0 s (3.0 s compiling)  done',
    ]


def test_what_a_run_will_do_comes_first_and_how_long_as_soon_as_it_is_measured():
    console = Console(file=io.StringIO(), width=40)
    progress = Progress(console=console)
    progress.announce('rlpa', {'warm-up': 2, 'PPO': 3}, (0, 2, 5), ['8 people'])
    with progress.start(5):
        progress.evaluated({'seconds_evaluate': 10.0, 'seconds_compile': 99.0, 'seconds_load': 7.0})
        progress.done(0, 'warm-up', {'seconds_update': 6.0, 'seconds_compile': 120.0})
        progress.done(1, 'warm-up', {'seconds_update': 2.0})
        progress.evaluated({'seconds_evaluate': 30.0})
        for step in (2, 3, 4):
            progress.done(step, 'rlpa', {'seconds_update': 60.0})
        progress.evaluated({'seconds_evaluate': 30.0})
    lines = [line for line in output(console).splitlines() if line]
    whole = 'rlpa: 2 steps of warm-up, 3 steps of PPO, 3 evaluations. '
    assert lines[0].startswith(whole) and lines[1] == '8 people'
    # The time of what is measured is never said without its name while something else is not measured.
    assert lines[2].startswith('the first step of warm-up took') and lines[2].endswith(
        'warm-up, evaluations: up to 25 s left; not known yet: PPO'
    )
    assert '2 min compiling' in lines[2]
    assert [line.split('  ')[-1] for line in (*lines[3:5], *lines[6:])] == [
        'warm-up, evaluations: up to 25 s left; the time of other phases is not known yet',
        'evaluations: about 20 s left; the time of other phases is not known yet',
        'up to 2 min left', 'about 90 s left', 'about 30 s left for the evaluation',
    ]  # fmt: skip
    assert lines[5].startswith('the first step of PPO took') and lines[5].endswith('; up to 2 min left')


def test_answers_that_are_nearly_all_cut_are_warned_of_once():
    console = Console(file=io.StringIO(), width=40)
    progress = Progress(console=console)
    for step in range(3):
        progress.done(step, 'rl', {'truncated': 0.5 + 0.25 * step})
    progress.done(3, 'rl', {'truncated': 1.0})
    assert output(console).count('sampling.max_tokens') == 1


def test_what_is_left_is_measured_skips_what_a_run_skips_and_ends():
    forecast = Forecast({'waiting, at most': 4, '': 4}, (0, 8))
    assert forecast.left(-1) == (0.0, ('waiting, at most', 'steps', 'evaluations'), (), False)
    assert forecast.left(-1).brief == 'time left: not known yet'
    forecast.evaluated({'seconds_evaluate': 5.0})
    assert forecast.stepped(0, {'seconds_read': 100.0}) == 'waiting, at most'
    assert forecast.stepped(1, {'seconds_read': 2.0}) is None
    assert forecast.left(1) == (2 * 2.0 + 5.0, ('steps',), ('waiting, at most', 'evaluations'), False)
    assert forecast.stepped(4, {'seconds_read': 3.0, 'seconds_compile': 50.0}) == ''
    assert forecast.left(4) == (3 * 3.0 + 5.0, (), ('steps', 'evaluations'), True)
    assert str(forecast.left(7)) == 'about 5 s left for the evaluation'
    assert str(Forecast({'': 1}).left(0)) == 'done'


@pytest.mark.parametrize(
    ('seconds', 'said'), [(0.4, '0 s'), (12, '12 s'), (72, '70 s'), (840, '14 min'), (9000, '2.5 h')]
)
def test_times_are_said_as_one_says_them(seconds, said):
    assert spoken(seconds) == said


def test_a_terminal_gets_a_bar_with_phase_and_latest_numbers():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, _environ={'TERM': 'xterm'})
    with Progress(console=console).start(10, first=7) as progress:
        progress.done(7, 'rlpa', {'reward': 0.41234, 'seconds_update': 60.0})
        with progress.phase('rollout'):
            pass
        progress.log('[red]text of a model is not markup')
    shown = output(console)
    assert all(text in shown for text in ('8/10', 'rollout', 'reward 0.412', 'up to 2 min left', '[red]text'))


def test_other_processes_show_nothing(monkeypatch, capsys):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    with Progress().start(3) as progress:
        progress.done(0, 'rlpa', {'reward': 1.0})
        progress.log('hello')
    assert capsys.readouterr() == ('', '')


def test_phases_are_timed_before_the_bar_is_there():
    clock = Clock()
    progress = Progress(clock=clock, console=Console(file=io.StringIO()))
    with progress.phase('load'):
        clock.now += 3
    with progress.start(1):
        assert progress.take_seconds() == {'seconds_other': 0.0, 'seconds_load': 3.0}


def test_making_one_touches_no_device(monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: pytest.fail('asked before the processes have met'))
    with Progress().phase('load'):
        pass


def test_an_evaluation_shows_its_figures_with_their_errors_and_its_tables():
    table = Exhibit('Costs', table=[['', 'limit'], ['policy', '-1'], ['a', '-10']])
    record = {'reward': 1.0, 'reward_se': 0.25, 'other': 3.0}
    text = evaluation_text('final', record, [table], ('reward', 'Costs'), CORE)
    first, reward, *rows = text.splitlines()
    assert 'final' in first and '1.000 ± 0.250' in reward
    assert [row.strip() for row in rows] == ['Costs', 'limit', 'policy  -1', 'a       -10']


def test_work_that_says_nothing_is_known_to_go_on():
    out, clock = io.StringIO(), Clock()
    progress = Progress(console=Console(file=out, width=100), clock=clock)
    with progress.silent('evaluating (base)', every=0.01):
        clock.now += 90
        # A slow machine may write a line before the clock moves.
        while f'{spoken(90)} so far' not in out.getvalue():
            time.sleep(0.01)
    lines = out.getvalue().splitlines()
    assert lines[0] == 'evaluating (base)' and lines[-1] == f'evaluating (base): {spoken(90)} so far'
    time.sleep(0.05)
    assert out.getvalue().splitlines() == lines


def test_a_first_step_that_lasts_is_said_to_compile_and_others_are_not():
    out = io.StringIO()
    progress = Progress(console=Console(file=out, width=100))
    with progress.start(4):
        with progress.step(0):
            assert not out.getvalue()
        with progress.step(0, after=0.01):
            while 'compiling' not in out.getvalue():
                time.sleep(0.01)
        progress.done(0, 'dpo', {'seconds_update': 1.0})
        lines = out.getvalue().splitlines()
        with progress.step(1, after=0.001):
            time.sleep(0.05)
    assert out.getvalue().splitlines() == lines and len(lines) == 2


def test_only_the_metrics_that_matter_are_described():
    assert describe({'kl': 0.0123, 'reward': 1.0, 'grad_norm': 3.0}) == 'reward 1  kl 0.0123  grad_norm 3'
    assert describe({'reward': 1.0, 'truncated': 0.2}) == 'reward 1'
    assert describe({'reward': 1.0, 'truncated': 0.25}) == 'reward 1  answers cut 25%'
    assert describe({'reward': 1.0, 'own_length': 0.2}) == 'reward 1'
    assert describe({'reward': 1.0, 'own_length': 0.2, 'own_style': 0.8}) == 'reward 1  length 0.2  style 0.8'


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_time_left_counts_what_new_shapes_compile_and_no_more_of_it_than_has_come():
    forecast = Forecast({'rl': 100})
    forecast.stepped(0, {'seconds_update': 9.0, 'seconds_compile': 50.0})  # comes once
    for step, compiled in enumerate((20.0, 0.0, 10.0, 0.0), 1):
        forecast.stepped(step, {'seconds_update': 2.0, 'seconds_compile': compiled, 'seconds_load': 7.0})
    assert forecast.left(4).seconds == 95 * 2.0 + 10.0  # two of the coming steps as the last two
    assert forecast.left(98).seconds == 2.0 + 5.0


def test_a_run_warns_once_of_answers_that_are_all_paid_the_same():
    console = Console(file=io.StringIO(), width=200)
    with Progress(console=console).start(3) as progress:
        for step, alike in enumerate((0.9, 1.0, 1.0)):
            progress.done(step, 'rl', {'reward': 0.0, 'alike': alike})
    assert [line for line in output(console).splitlines() if 'paid the same' in line] == [
        'warning: 100% of the prompts have answers that were all paid the same, so nothing is learnt from this step'
    ]

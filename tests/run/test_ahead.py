"""Lines of work that begins before its result is needed."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from pal_jax.run import ahead, devices
from pal_jax.run.ahead import Ahead
from pal_jax.run.recipe import Context
from pal_jax.types import Completion, Sample


@pytest.mark.parametrize('steps', [0, 1, 2, 4])
@pytest.mark.parametrize('here', [False, True])
def test_every_step_gets_its_own_result(steps, here):
    work, line, results, began = Ahead('work', steps, here=here), (), [], []
    for i in range(6):
        work.wait()
        due = work.due(i, line, 6)
        began.append(list(due))
        for j in due:
            line = work.begin(line, lambda j=j: 10 * j)
        result, line = work.take(line)
        results.append(result)
    assert results == [0, 10, 20, 30, 40, 50] and not line
    assert began[0] == list(range(steps + 1))
    assert [j for row in began for j in row] == list(range(6))


def test_a_thread_works_in_order_while_its_caller_goes_on():
    seen, work, line = [], Ahead('work', 2), ()

    def slow(j):
        time.sleep(0.01 * (3 - j))
        seen.append((j, threading.current_thread() is threading.main_thread()))

    for j in range(3):
        line = work.begin(line, lambda j=j: slow(j))
    while line:
        _, line = work.take(line)
    assert seen == [(0, False), (1, False), (2, False)]


def test_without_a_thread_the_caller_does_the_work():
    seen = []
    line = Ahead('work', 0).begin((), lambda: seen.append(threading.current_thread()))
    assert not seen
    Ahead('work', 0).take(line)
    assert seen == [threading.main_thread()]


@pytest.mark.parametrize('steps', [0, 2])
def test_work_of_this_machines_devices_is_done_once_when_it_begins(steps):
    seen, work = [], Ahead('work', steps, here=True)
    line = work.begin((), lambda: seen.append(threading.current_thread()))
    assert seen == [threading.main_thread()] and not work.apart
    # A checkpoint asks for results that are taken later.
    line[0]()
    work.take(line)
    assert len(seen) == 1


def test_a_caller_can_wait_for_all_work():
    seen, work = [], Ahead('work', 2)
    for j in range(2):
        work.begin((), lambda j=j: (time.sleep(0.02), seen.append(j)))
    work.wait()
    assert seen == [0, 1] and work.apart


def test_an_error_of_the_work_is_raised_where_its_result_is_taken():
    def fail():
        raise RuntimeError('no judge')

    work = Ahead('work', 1)
    line = work.begin((), fail)
    with pytest.raises(RuntimeError, match='no judge'):
        work.take(line)


def test_a_line_that_is_closed_does_nothing_more():
    seen, work, go, line = [], Ahead('work', 4), threading.Event(), ()
    line = work.begin(line, go.wait)
    for j in range(3):
        line = work.begin(line, lambda j=j: seen.append(j))
    work.close()
    go.set()
    line[0]()
    with pytest.raises(CancelledError):
        line[1]()
    assert not seen


def test_what_cannot_be_ahead_is_refused():
    with pytest.raises(ValueError, match=r'rollout\.ahead=-1'):
        ahead.check_ahead(-1, True, driver='local', exact=False)
    with pytest.raises(ValueError, match=r'rollout\.ahead=2 .*decode\.exact'):
        ahead.check_ahead(2, True, driver='local', exact=True)
    ahead.check_ahead(0, True, driver='local', exact=True)
    for steps, driver in ((0, 'jetstream'), (2, 'local')):
        with pytest.raises(ValueError, match='rollout.lockstep=False'):
            ahead.check_ahead(steps, False, driver=driver, exact=False)
    ahead.check_ahead(2, False, driver='jetstream', exact=False)


@pytest.mark.parametrize(('steps', 'here', 'said'), [(2, True, 1), (2, False, 0), (0, True, 0)])
def test_a_run_in_which_nothing_is_done_beside_updates_says_so(steps, here, said):
    log = []
    lines = ahead.make_lines(
        Context(devices.make_mesh(), log=log.append), steps, True, {'sampling': True, 'paid': here}
    )
    assert [line.apart for line in lines.values()] == [False, bool(steps and not here)]
    assert len(log) == said and all(f'rollout.ahead={steps}' in line for line in log)


@pytest.mark.parametrize('lockstep', [True, False])
def test_weights_wait_for_work_under_way_in_lockstep_alone(lockstep):
    done, loaded, go = [], [], threading.Event()
    work = Ahead('work', 2, lockstep=lockstep)
    work.begin((), lambda: (go.wait(), done.append('work')))
    threading.Timer(0.2, go.set).start()
    work.refresh(lambda *arguments: loaded.append((list(done), arguments)), {'w': 1}, 7)
    assert loaded == ([(['work'], ({'w': 1},))] if lockstep else [([], ({'w': 1}, 7))])
    work.wait()
    samples = [
        Sample((1,), Completion('', (1, 2), (0.0, 0.0), 'stop', versions=versions)) for versions in ((5, 7), (6, 6))
    ]
    assert work.age(samples, 8) == ({} if lockstep else {'age': 2.0})

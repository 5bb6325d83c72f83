"""Lines of work that begins before its result is needed."""

import contextlib
import json
import threading
import time
from concurrent.futures import CancelledError

import pytest

from pal_jax.run import ahead, devices
from pal_jax.run.ahead import Ahead, RolloutsAhead
from pal_jax.run.language import DecodeSettings, RolloutSettings
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


@pytest.mark.parametrize(
    ('rollout', 'decode', 'named'),
    [
        (RolloutSettings(-1), DecodeSettings(), r'rollout\.ahead=-1'),
        (RolloutSettings(2), DecodeSettings(exact=True), r'rollout\.ahead=2 .*decode\.exact'),
        (RolloutSettings(0), DecodeSettings(exact=True), ''),
        (RolloutSettings(0, lockstep=False), DecodeSettings(driver='jetstream'), r'rollout\.lockstep=False'),
        (RolloutSettings(2, lockstep=False), DecodeSettings(), r'rollout\.lockstep=False'),
        (RolloutSettings(2, lockstep=False), DecodeSettings(driver='jetstream'), ''),
    ],
)
def test_what_cannot_be_ahead_is_refused(rollout, decode, named):
    with pytest.raises(ValueError, match=named) if named else contextlib.nullcontext():
        ahead.check_ahead(rollout, decode)


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


# --- rollouts ---------------------------------------------------------------------------------------------------------


class Weights:
    """A decoder that keeps the weights which it has loaded."""

    loaded = None

    def load(self, params, version=0):
        self.loaded = params

    def release(self):
        self.loaded = None


@pytest.mark.parametrize('steps', [0, 1, 2, 4])
@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('judged', [None, False, True])
def test_a_rollout_has_the_weights_of_so_many_steps_before_also_out_of_a_checkpoint(steps, apart, judged):
    """The weights before step i are the number i; every step goes through a checkpoint."""
    decoder, paid = Weights(), []
    rollouts = RolloutsAhead(
        Context(devices.make_mesh()), 6, Ahead('sampling', steps, here=not (steps and apart)), decoder, list, tuple,
        Ahead('paid', steps) if judged else None,
    )  # fmt: skip

    def pay(samples, i):
        paid.append(i)
        return (*samples, 'paid')

    host, taken = {'rollouts': ()}, []
    for i in range(6):
        rollout, line = rollouts(
            host, i, lambda i=i: i, lambda j: (j, decoder.loaded), None if judged is None else pay
        )  # fmt: skip
        taken.append(rollout)
        assert len(line) == min(steps, 5 - i)
        assert (decoder.loaded is None) == (not rollouts.sampling.apart)
        host = rollouts.resume(json.loads(json.dumps(rollouts.pack({'rollouts': line}))))
    assert taken == [(i, max(i - steps, 0), *(() if judged is None else ('paid',))) for i in range(6)]
    assert paid == ([] if judged is None else [*range(6)])
    rollouts.close()


def test_a_rollout_is_sampled_and_paid_beside_the_update_of_an_earlier_step():
    """The second rollout has begun, though nobody has asked for it and its judge has not answered."""
    began, go, decoder = threading.Event(), threading.Event(), Weights()
    rollouts = RolloutsAhead(
        Context(devices.make_mesh()), 2, Ahead('sampling', 1), decoder, list, tuple, Ahead('paid', 1)
    )  # fmt: skip

    def pay(i, _):
        if i:
            began.set()
            go.wait()
        return (i,)

    first, line = rollouts({'rollouts': ()}, 0, dict, lambda i: i, pay)
    assert first == (0,) and began.wait(60)
    go.set()
    assert rollouts({'rollouts': line}, 1, dict, lambda i: i, pay)[0] == (1,)
    rollouts.close()


def test_a_judge_on_this_machine_does_not_wait_for_a_server_that_samples_a_later_step():
    go, began = threading.Event(), threading.Event()
    rollouts = RolloutsAhead(Context(devices.make_mesh()), 2, Ahead('sampling', 1), Weights(), list, tuple)

    def sample(i):
        if i:
            began.set()
            go.wait()
        return (i,)

    first, line = rollouts({'rollouts': ()}, 0, dict, sample, lambda samples, i: samples)
    assert first == (0,) and began.wait(60) and not go.is_set()
    go.set()
    assert rollouts({'rollouts': line}, 1, dict, sample, lambda samples, i: samples)[0] == (1,)
    rollouts.close()

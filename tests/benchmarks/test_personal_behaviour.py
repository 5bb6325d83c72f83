"""From reward to behaviour on replies that are drawn: the oracle is first, who is shuffled is no better than shared."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import personal_behaviour as bench


def drawn(prompts, n, tokens):
    """Replies whose coordinates are their attributes, seen through a rotation."""
    rng = np.random.default_rng(0)
    words = 'thanks? regrettably considerable! yes no ok '.split()
    texts = [' '.join(rng.choice(words, rng.integers(1, 12))) for _ in range(len(prompts) * n)]
    marks = bench.counts(texts)
    marks = (marks - marks.mean(axis=0)) / np.maximum(marks.std(axis=0), 1e-9)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    return texts, np.hstack([marks, 0.1 * rng.normal(size=(len(texts), 3))]).astype(np.float32) @ rotation


def test_attributes_and_the_direction_that_is_taken_out():
    marks = bench.counts(['Thanks!', 'Is it? Is it?', '- one\n- two\n', 'incomprehensible considerations'])
    assert marks.argmax(axis=0).tolist() == [3, 1, 0, 3, 2]
    x = np.random.default_rng(0).normal(size=(400, 6))
    left = bench.less(x, bench.direction(x, x[:, 0]))
    assert abs(np.corrcoef(left @ np.eye(6)[0], x[:, 0])[0, 1]) < 0.1
    np.testing.assert_allclose(left[:, 1:], x[:, 1:], atol=0.2)


def test_choices_have_the_ceiling_and_the_oracle_is_first():
    learning, held = bench.in_halves(*drawn(range(40), 8, 0), 8)
    people = bench.draw_people(40, learning, 0)
    choices, gaps = bench.draw_choices(held, people.new, people.scale, 200, [0])
    assert np.mean(np.sum(gaps * people.new[choices.users], axis=1) > 0) == pytest.approx(bench.CEILING, abs=0.02)
    rows = bench.behave(learning, held, people, 0, [])
    oracle, length = rows['oracle'], rows['length']
    assert np.all(np.diff(oracle.best.mean(axis=0)) > 0) and np.all(oracle.regret == 0)
    assert oracle.best[:, -1].mean() > length.best[:, -1].mean()
    np.testing.assert_allclose(oracle.best[:, 0], length.best[:, 0], atol=1e-9)  # one reply is a random one


@pytest.mark.slow
def test_rewards_of_people_pick_better_replies_than_one_for_all(capsys, tmp_path):
    (path := tmp_path / 'prompts.jsonl').write_text('{"prompt": "Hi"}\n' * 40)
    kept = tmp_path / 'replies.jsonl'
    asked = [f'--prompts={path}', '--methods=lore,pref', f'--kept={kept}']
    bench.main(asked, lambda *sizes: drawn(*sizes)[0], lambda *_: drawn(range(40), 16, 0)[1])
    table = capsys.readouterr().out.splitlines()
    row = {line.split(' | ')[0].strip('| '): line.split(' | ')[1:] for line in table[4:-1]}
    best = {name: float(cells[3].split()[0]) for name, cells in row.items()}
    assert best['oracle'] > best['lore'] > best['shared'] + 0.05
    assert best['shuffled'] < best['shared'] + 0.1
    # The coordinates are the attributes and some noise, so all of the truth can be read.
    accuracy = {name: float(cells[0].split()[0]) for name, cells in row.items()}
    assert accuracy['oracle'] + 0.005 > accuracy['linear ceiling'] > accuracy['lore']
    assert len(kept.read_text().splitlines()) == 640
    with pytest.raises(ValueError, match='replies to other prompts, or another number'):
        bench.main([*asked, '--replies=8'])
    path.write_text('{"prompt": "Hi"}\n')
    with pytest.raises(ValueError, match='give 12 or more'):
        bench.main([f'--prompts={path}', '--quick'])

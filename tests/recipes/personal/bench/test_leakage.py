"""Every leakage test against a planted leak, which it flags, and the same data without it, which passes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import audit_power
from pal_jax.recipes.personal.bench import leakage, shortcuts
from pal_jax.recipes.personal.evaluation import asymmetry
from pal_jax.recipes.personal.logit import logistic

CHOSEN = [120, 80, 200, 50, 90, 150, 60, 110, 75, 300]
REJECTED = [60, 70, 120, 55, 40, 100, 65, 50, 70, 120]


# --- T1, T2 -----------------------------------------------------------------------------------------------------------


def test_the_bound_of_models_that_do_not_know_who_chooses():
    assert leakage.vote_bound(np.array([[8, 2], [5, 5], [9, 1], [3, 7]])) == pytest.approx(0.725)
    assert leakage.vote_bound(np.array([[6, 4]] * 20)) == pytest.approx(0.6)


def camps(leak):
    """Two camps of 6 and 4, ten pairs each; with `leak` the blind model is right on nine of ten pairs."""
    people = np.repeat(np.arange(50), 10)
    blind = np.where(people % 10 < 6, 1.0, 0.0)
    if leak:
        blind = np.where(np.arange(500) % 10 < 9, 1.0, 0.0)
    return blind, np.ones(500), people


def test_a_blind_model_above_its_bound_flags():
    blind, knowing, people = camps(leak=False)
    assert blind.mean() == pytest.approx(0.6)
    clean = leakage.blind_to_person(blind, knowing, people, bound=0.6)
    assert (clean.verdict, clean.figure) == ('pass', pytest.approx(0.4))
    leaky, _, _ = camps(leak=True)
    assert leakage.blind_to_person(leaky, knowing, people, bound=0.6).verdict == 'flag'
    few = leakage.blind_to_person(blind, blind, people, bound=0.6)
    assert (few.verdict, leakage.TOO_FEW in few.words) == ('warn', True)
    many = [np.tile(blind, 8)] * 2
    nothing = leakage.blind_to_person(*many, np.repeat(np.arange(400), 10), bound=0.6)
    assert (nothing.verdict, leakage.NOTHING in nothing.words) == ('flag', True)


def test_a_prompt_that_decides_nothing_flags():
    people, long_asked = np.repeat(np.arange(20), 10), np.arange(200) % 2 == 0
    longer_won = long_asked  # the winner fits the prompt: the long reply where the prompt asks for it
    full, alone = np.ones(200), longer_won.astype(float)
    fits = leakage.blind_to_prompt(full, alone, people)
    assert (fits.verdict, fits.figure) == ('pass', pytest.approx(0.5))
    assert leakage.blind_to_prompt(full, full, people).verdict == 'warn'  # twenty people cannot tell .01
    always_long = leakage.blind_to_prompt(np.ones(800), np.ones(800), np.arange(800))
    assert (always_long.verdict, always_long.figure) == ('flag', 0.0)


# --- T3 to T6 ---------------------------------------------------------------------------------------------------------


def test_length_alone():
    lengths = np.stack([CHOSEN, REJECTED], axis=1)
    one = shortcuts.length_only(lengths, np.zeros(10, int))
    assert one.figure == pytest.approx(0.8)
    assert one.verdict == 'pass'  # p .109: ten pairs of one person say nothing
    ten = shortcuts.length_only(np.tile(lengths, (10, 1)), np.repeat(np.arange(10), 10))
    assert (ten.verdict, ten.figure) == ('flag', pytest.approx(0.8))
    rng = np.random.default_rng(0)
    fair = shortcuts.length_only(rng.integers(20, 300, (1000, 2)), np.repeat(np.arange(50), 20))
    assert fair.verdict == 'pass'


def test_marks_are_counted():
    counts = dict(zip(shortcuts.MARKS, shortcuts.marks('# A\n- x\n- **y**\n1. z? `c`'), strict=True))
    assert counts == {
        'headings': 1, 'bullets': 2, 'numbers': 1, 'bold': 1, 'code': 1, 'new lines': 3, 'question marks': 1,
        'digits': 1,
    }  # fmt: skip


def test_formatting_alone():
    rng, people = np.random.default_rng(0), np.repeat(np.arange(20), 10)
    bullets, plain = '- one\n- two\n- three', 'one, two and three'
    assert shortcuts.formatting_only([bullets] * 200, [plain] * 200, people).verdict == 'flag'
    first = rng.random(200) < 0.5
    sides = [[bullets if side == way else plain for side in first] for way in (True, False)]
    assert shortcuts.formatting_only(*sides, people).verdict != 'flag'


@pytest.mark.parametrize(
    ('first', 'pairs', 'p', 'verdict'),
    [(14, 20, 0.115, 'pass'), (60, 100, 0.0569, 'pass'), (550, 1000, 0.0017, 'flag')],
)
def test_position(first, pairs, p, verdict):
    result = leakage.position(first, pairs)
    assert float(result.words.rpartition(' ')[2]) == pytest.approx(p, abs=6e-4)
    assert result.verdict == verdict


def test_swapped_sides_give_the_negative_margin():
    margins = np.array([0.3, -2.0])
    assert asymmetry(margins, -margins) == 0.0
    assert asymmetry(margins, 0.1 - margins) > leakage.ASYMMETRY


def test_a_rejected_reply_that_is_a_list_of_strings_flags():
    numbers = np.random.default_rng(0).integers(100, 1000, (20, 2))
    chosen, rejected = ([f'{number} apples' for number in column] for column in numbers.T)
    assert shortcuts.artefacts(chosen, rejected).verdict == 'pass'
    leaky = shortcuts.artefacts(chosen, [str([text]) for text in rejected])
    assert (leaky.verdict, leaky.figure) == ('flag', pytest.approx(0.00098, abs=5e-6))
    assert shortcuts.artefacts(chosen[:16], [str([text]) for text in rejected[:16]]).verdict != 'flag'


def test_letters_of_longer_texts_are_no_artefact():
    rng = np.random.default_rng(0)
    letters, chances = np.array(list('abcdefghijklmnop')), rng.dirichlet(np.full(16, 0.7))
    texts = [[''.join(rng.choice(letters, size=n, p=chances)) for n in rng.integers(4, 40, 2)] for _ in range(600)]
    # The longer text is chosen in seven of ten, so its letters stand more often on the chosen side.
    turned = [sorted(pair, key=len, reverse=rng.random() < 0.7) for pair in texts]
    chosen, rejected = zip(*turned, strict=True)
    assert shortcuts.artefacts(chosen, rejected).verdict == 'pass'
    marked = [text + '!' * (rng.random() < 0.3) for text in rejected]
    assert shortcuts.artefacts(chosen, marked).verdict == 'flag'
    # A mark that both sides have, but the rejected ones more often than their lengths say.
    both = [text + '!' * (rng.random() < 0.1) for text in chosen]
    assert shortcuts.artefacts(both, [text + '!' * (rng.random() < 0.4) for text in rejected]).verdict == 'flag'


# --- T7, T8, T12 ------------------------------------------------------------------------------------------------------

RICE = 'How do I cook rice without burning it?'
CAR = 'How do I wash a car without scratching it?'


def test_near_duplicates():
    twin = RICE.replace('rice ', 'rice  ').rstrip('?')
    np.testing.assert_allclose(leakage.nearest([twin, CAR], [RICE]), [0.970588, 0.220339], atol=2e-6)
    people, right = np.zeros(2, int), np.array([1.0, 0.0])
    assert leakage.near_duplicates(leakage.nearest([twin, CAR], [RICE]), right, people).verdict == 'flag'
    assert leakage.near_duplicates(leakage.nearest([CAR, CAR], [RICE]), right, people).verdict == 'pass'


def test_memory_of_texts():
    A, B, C, D = range(4)
    train = np.array([[A, B]] * 3 + [[C, A]])
    margins, known = leakage.memory(train, np.array([[A, B], [B, C], [D, A]]))
    np.testing.assert_array_equal(margins, [5, -4, -2])
    assert known.all()


def test_what_is_tested_stands_in_training():
    rng = np.random.default_rng(0)
    train, people = np.stack([np.arange(50), np.arange(50, 100)], axis=1), np.repeat(np.arange(10), 5)
    planted = leakage.in_training(train, train, people, shared_people=0)
    assert planted.verdict == 'flag'
    assert leakage.in_training(train, train, people, shared_people=0, by_design=True).verdict == 'warn'
    assert leakage.in_training(train, train + 100, people, shared_people=0).verdict == 'pass'
    assert leakage.in_training(train, train + 100, people, shared_people=1).verdict == 'flag'
    coins = np.where(rng.random((50, 1)) < 0.5, train, train[:, ::-1])
    assert leakage.in_training(train, coins, people, shared_people=0).verdict != 'flag'


def test_known_and_tested():
    known = [(0, 'dialogue 3'), (1, 'dialogue 4')]
    assert leakage.known_and_tested(known, [(0, 'dialogue 3'), (1, 'dialogue 5')]).verdict == 'flag'
    assert leakage.known_and_tested(known, [(0, 'dialogue 4'), (1, 'dialogue 3')]).verdict == 'pass'


# --- T9 ---------------------------------------------------------------------------------------------------------------


def test_log_odds():
    assert shortcuts.log_odds(18, 50, 2, 50) == (pytest.approx(2.4018, abs=5e-5), pytest.approx(3.3783, abs=5e-5))


def bag(won_with, lost_with, names=()):
    """Fifty winners and fifty losers, of which so many have the word `honestly`."""
    words = ['plain', 'words', 'here']
    texts = [' '.join([*words, *['honestly'] * (i < count)]) for count in (won_with, lost_with) for i in range(50)]
    won = np.repeat([True, False], 50)
    return shortcuts.label_in_text(texts, won, np.tile(np.arange(50), 2), names)


def test_a_word_that_tells_the_label():
    assert bag(18, 2).verdict == 'warn'
    assert bag(40, 2).verdict == 'flag'
    assert bag(10, 10).verdict == 'pass'
    assert bag(10, 10, ['somebody else']).verdict == 'pass'
    assert bag(10, 10, ['honestly']).verdict == 'flag'


# --- T10, T11 ---------------------------------------------------------------------------------------------------------


def test_random_directions():
    rng = np.random.default_rng(0)
    for shift, ratio, distances, verdict in (
        (0, 0.92, ('0.0200', '0.0218'), 'pass'),
        (2, 3.77, ('0.0803', '0.0213'), 'flag'),
        (8, 11.3, ('0.2332', '0.0206'), 'flag'),
    ):
        x = rng.normal(size=(400, 64))
        x[:, 0] += shift
        result = leakage.random_direction(x, rng)
        assert (result.figure, result.verdict) == (pytest.approx(ratio, abs=0.05), verdict)
        assert all(distance in result.words for distance in distances)


def population(seed):
    """S1 of the specification: 120 people whose tastes are mixtures of three, 60 pairs each of eight attributes."""
    r = np.random.default_rng(seed)
    V, W, D = r.normal(size=(8, 3)), r.dirichlet([0.3] * 3, 120), r.normal(size=(120, 60, 8))
    m = 3 * np.einsum('upc,ck,uk->up', D, V, W) / np.sqrt(8)
    won = r.random(m.shape) < 1 / (1 + np.exp(-m))
    return np.where(won[..., None], D, -D)


def test_labels_by_a_coin_teach_nothing_unless_the_test_leaks():
    data = population(0)
    train, test = data[:80, :40].reshape(-1, 8), data[:80, 40:].reshape(-1, 8)
    people, rng = np.repeat(np.arange(80), 20), np.random.default_rng(1)

    def honest(signs):
        return test @ logistic(train * signs[:, None])

    clean = leakage.flipped_labels(honest, len(train), people, rng)
    assert clean.verdict == 'pass'
    # The loader of a test set that always puts the winner first, and a model that reads positions.
    leaky = leakage.flipped_labels(lambda signs: np.ones(len(test)), len(train), people, rng)
    assert leaky.verdict == 'flag'


def test_pairs_without_a_common_text():
    left, right = np.array([0, 1, 2, 4]), np.array([1, 2, 3, 5])
    kept = leakage.disjoint(left, right, np.random.default_rng(0))
    texts = np.concatenate([left[kept], right[kept]])
    assert len(np.unique(texts)) == len(texts)
    assert len(leakage.disjoint(left, right, np.random.default_rng(0), most=1)) == 1


def verdicts(trial, sizes, leak, sets):
    return [trial(np.random.default_rng([size, seed]), size, leak).verdict for size in sizes for seed in range(sets)]


@pytest.mark.slow
def test_tastes_are_neither_a_leak_nor_nothing_and_leaks_are_flagged():
    """Before, T10 flagged 37 of 40 such tables, and T1 most sets of few people whose tastes differ."""
    assert verdicts(audit_power.random_direction, (2, 8), False, 10).count('flag') <= 1
    assert verdicts(audit_power.random_direction, (2, 8), True, 4).count('flag') >= 7
    assert verdicts(audit_power.differing, (10, 30), False, 10).count('flag') <= 1


@pytest.mark.slow
def test_words_of_clean_texts_warn_rarely_and_a_tenth_of_winners_with_one_word_flag():
    """Before, T9 warned of nearly all clean texts: one of their words had a z above 3."""
    clean = verdicts(audit_power.label_in_text, (20,), False, 20)
    assert clean.count('warn') <= 3 and 'flag' not in clean
    assert verdicts(audit_power.label_in_text, (40,), True, 3) == ['flag'] * 3


def test_texts_that_win_as_often_as_they_lose_have_no_label():
    """Such a table ended the run: an array of no texts has no shape."""
    nothing = np.zeros(0, int)
    assert shortcuts.label_in_text([], nothing > 0, nothing, popularity=True).verdict == 'none'

import dataclasses

import pytest

from pal_jax.recipes.rlpa.criteria import CRITERIA, SCORES, judge_by_rules
from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS, make_people
from pal_jax.recipes.rlpa.profiles import match_exactly, profile_f1, render_completion, render_facts, to_sample
from pal_jax.recipes.rlpa.rewards import judged_dialogue, make_reward, swapped_people
from pal_jax.types import Completion, Dialogue, Person, Turn, Verdict

FACTS = ('food: pizza', 'pet: cat', 'job: nurse', 'city: Oslo')
PERSON = Person('p', FACTS)
HISTORY = (Turn('user', 'Hello'), Turn('assistant', 'Hi.', '- pet: dog\n'), Turn('user', 'I have a cat at home.'))
GOOD = 'A cat, that sounds cozy to me. Does it follow you around the kitchen?'
REWARD = make_reward(match_exactly, judge_by_rules)


def sample(facts=(), reply=GOOD, *, text=None, turns=HISTORY, person=PERSON):
    text = render_completion(render_facts(facts), reply) if text is None else text
    return to_sample(Dialogue(person, turns), Completion(text, (3,), (0.0,), 'stop'), (1, 2))


def no_matcher(inferred, golden):
    raise AssertionError(f'the matcher was asked about {inferred}')


def no_judge(dialogues, inferred, replies, seed):
    raise AssertionError(f'the judge was asked about {replies}')


def constant_judge(scores, ok=True):
    def judge(dialogues, inferred, replies, seed):
        return [Verdict(scores, ok) for _ in replies]

    return judge


def silent_matcher(inferred, golden) -> list[int | None]:
    return [None for _ in inferred]


def test_total_is_profile_f1_plus_response_score():
    scored = REWARD([sample(['pet: cat', 'pet: dog'])], 0)[0]
    assert scored.info['profile'] == pytest.approx(profile_f1(1, 2, 4)) == pytest.approx(1 / 3)
    assert scored.info['response'] == scored.info['graded'] == 1.0
    assert scored.reward == pytest.approx(4 / 3)
    assert [scored.info[name] for name in ('facts', 'matched', 'precision', 'recall')] == [2, 1, 0.5, 0.25]
    assert scored.ok


@pytest.mark.parametrize(('judge', 'expected'), [(1.0, 1.428571), (0.0, 0.428571)])
def test_golden_total(judge, expected):
    """G16: three of four inferred facts match ten golden ones."""
    golden = tuple(f'{slot.name}: {slot.known[0]}' for slot in SCHEMA[:10])
    inferred = [*golden[:3], 'color: maroon']
    scored = make_reward(match_exactly, constant_judge(dict.fromkeys(SCORES, judge)))(
        [sample(inferred, person=Person('p', golden))], 0
    )
    assert scored[0].reward == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    'text', ['', GOOD, '<profile>\n- pet: cat\n</profile>\n<response>\nHi.</response>', '<profile>\n</profile>\n\n']
)
def test_malformed_earns_exactly_nothing_and_calls_nobody(text):
    scored = make_reward(no_matcher, no_judge)([sample(text=text)] * 3, 0)
    assert all(s.reward == 0.0 and s.ok and set(s.info.values()) == {0.0} for s in scored)


def test_matcher_and_judge_are_called_once_with_the_well_formed_samples():
    calls = []

    def matcher(inferred, golden):
        calls.append(('matcher', [*inferred], [*golden]))
        return match_exactly(inferred, golden)

    def judge(dialogues, inferred, replies, seed):
        calls.append(('judge', [*inferred], [*replies], seed))
        return judge_by_rules(dialogues, inferred, replies, seed)

    samples = [sample(['pet: cat']), sample(text='nonsense'), sample([], 'Yes.')]
    scored = make_reward(matcher, judge)(samples, 5)
    assert calls == [
        ('matcher', [('pet: cat',), ()], [FACTS, FACTS]),
        ('judge', [('pet: cat',), ()], [GOOD, 'Yes.'], 5),
    ]
    assert [s.info['format'] for s in scored] == [1.0, 0.0, 1.0]
    assert scored[0].reward > 1 and scored[1].reward == 0.0 == scored[2].reward
    assert [dataclasses.replace(s, rewards=(0.0,), info={}) for s in scored] == samples


def test_info_has_the_same_float_keys_for_every_sample():
    scored = REWARD([sample(['pet: cat']), sample(text='nonsense')], 0)
    expected = {'format', 'profile', 'response', *CRITERIA, 'strict', 'graded'}
    expected |= {'facts', 'matched', 'precision', 'recall'}
    assert all(set(s.info) == expected for s in scored)
    assert all(type(value) is float for s in scored for value in s.info.values())


def test_no_answer_is_marked_and_earns_nothing():
    for matcher, judge in ((silent_matcher, judge_by_rules), (match_exactly, constant_judge({}, ok=False))):
        scored = make_reward(matcher, judge)([sample(['pet: cat']), sample(text='')], 0)
        assert [(s.ok, s.reward) for s in scored] == [(False, 0.0), (True, 0.0)]


def test_ablations_pay_one_part_and_measure_both():
    profile_only = make_reward(match_exactly, judge_by_rules, response_weight=0.0)([sample(['pet: cat'])], 0)[0]
    response_only = make_reward(match_exactly, judge_by_rules, profile_weight=0.0)([sample(['pet: cat'])], 0)[0]
    assert profile_only.reward == pytest.approx(0.4)
    assert response_only.reward == 1.0
    assert profile_only.info == response_only.info


def test_strict_response_is_the_product():
    flat = 'The cat sounds cozy to me, in the kitchen and elsewhere.'  # asks nothing
    graded = REWARD([sample([], flat)], 0)[0]
    strict = make_reward(match_exactly, judge_by_rules, response='strict')([sample([], flat)], 0)[0]
    assert (graded.reward, strict.reward) == (0.75, 0.0)
    assert graded.info['strict'] == strict.info['response'] == 0.0


def test_judge_sees_neither_the_golden_profile_nor_any_noted_profile():
    """IV.3-5, with the golden profile withheld, too."""
    seen = []

    def judge(dialogues, inferred, replies, seed):
        seen.extend(dialogues)
        return judge_by_rules(dialogues, inferred, replies, seed)

    make_reward(match_exactly, judge)([sample(['city: Rome'])], 0)
    assert seen == [judged_dialogue(sample().source)]
    assert seen[0].person.facts == ()
    assert [turn.content for turn in seen[0].turns] == [turn.content for turn in HISTORY]
    assert not any(turn.profile or 'profile' in turn.content or turn.role == 'system' for turn in seen[0].turns)


def test_listing_the_whole_schema_pays_less_than_an_honest_part():
    """IV.3-15: nobody gains by naming every value of every slot, or one value of every slot."""
    everything = [f'{slot.name}: {value}' for slot in SCHEMA for value in slot.known]
    common = [f'{slot.name}: {slot.known[0]}' for slot in SCHEMA]
    for person in make_people(40, seed=0):
        scored = REWARD([sample(f, person=person) for f in (everything, common, person.facts[:1])], 0)
        listed, guessed, honest = (s.info['profile'] for s in scored)
        assert honest == pytest.approx(0.4)  # 2k / (k + n)
        assert listed == pytest.approx(8 / 100)
        assert guessed < honest
    assert len(common) == len(SLOTS)


def test_empty_profile_and_a_good_reply_pay_exactly_the_response():
    scored = REWARD([sample([], GOOD.replace('A cat', 'Your cat'))], 0)[0]
    assert scored.info['profile'] == 0.0
    assert scored.reward == scored.info['response'] == 1.0


def test_reward_stays_within_zero_and_two():
    facts = ['pet: cat', 'food: pizza', 'job: nurse', 'city: Oslo', 'pet: cat.', 'Pet: the cat']
    scored = REWARD([sample(facts), sample(facts[:4]), sample([], 'Yes.')], 0)
    assert [s.reward for s in scored] == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'response': 'loose'}, "response='loose'"),
        ({'profile_weight': -1.0}, 'profile_weight=-1.0'),
        ({'response_weight': float('nan')}, 'response_weight=nan'),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_reward(match_exactly, judge_by_rules, **kwargs)


def test_judge_without_a_score_is_refused():
    with pytest.raises(ValueError, match='no score for'):
        make_reward(match_exactly, constant_judge({'graded': 1.0}))([sample()], 0)


def test_the_shuffled_control_scores_against_another_person():
    people = [Person('a', ('pet: cat',)), Person('a', ('pet: cat',)), Person('b', ('pet: dog', 'job: baker'))]
    assert [person.id for person in swapped_people(people)] == ['b', 'b', 'a']
    known = [Person('d', ('Pet:  cat',)), Person('e', ('pet: ant',))]
    assert [person.id for person in swapped_people([*people, known[0]])] == [
        'b',
        'b',
        'd',
        'b',
    ]  # who says the same is the same
    assert [person.id for person in swapped_people(people[:2], known)] == ['e', 'e']
    with pytest.raises(ValueError, match='the same facts'):
        swapped_people([people[0], known[0]])
    reward = make_reward(match_exactly, judge_by_rules, shuffled=True)
    text = render_completion('- pet: cat\n', 'Tell me more about it, please.')
    dialogues = [Dialogue(person, (Turn('user', 'Hello'),)) for person in people]
    samples = [to_sample(each, Completion(text, (1,), (0.0,), 'stop'), (1,)) for each in dialogues]
    assert [sample.info['profile'] for sample in reward(samples, 0)] == [0.0, 0.0, 1.0]

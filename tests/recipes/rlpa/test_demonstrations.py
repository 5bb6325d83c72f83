import pytest

from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.demonstrations import TOPICS, make_demonstrations
from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS
from pal_jax.recipes.rlpa.profiles import mentions, parse_completion, split_fact
from pal_jax.recipes.rlpa.rewards import judged_dialogue
from pal_jax.recipes.rlpa.users import revealed

EXAMPLES = make_demonstrations(160, seed=0)
PARSED = [parse_completion(example.completion) for example in EXAMPLES]


def test_no_slot_and_no_value_of_people_occurs():
    texts = [
        '\n'.join((*example.dialogue.person.facts, *(t.content + t.profile for t in example.dialogue.turns)))
        + example.completion
        for seed in range(3)
        for example in make_demonstrations(160, seed=seed)
    ]
    everything = '\n'.join(texts)
    assert mentions(everything, TOPICS[0])
    words = [*SLOTS, *(value for slot in SCHEMA for value in (*slot.known, *slot.unseen))]
    assert not [word for word in words if mentions(everything, word)]


def test_every_completion_has_the_format_and_states_just_what_was_told():
    for example, parsed in zip(EXAMPLES, PARSED, strict=True):
        assert parsed is not None
        assert {*parsed.facts} == revealed(example.dialogue)


def test_sixty_percent_copy_facts_and_the_rest_is_empty():
    copying = [bool(parsed and parsed.facts) for parsed in PARSED]
    assert sum(copying) == 96
    assert {example.dialogue.round for example in EXAMPLES} == {0, 1, 2}
    assert {len(parsed.facts) for parsed in PARSED if parsed} == {0, 1, 2}


def test_dialogues_alternate_and_carry_the_profile_of_their_time():
    for example in EXAMPLES:
        turns = example.dialogue.turns
        assert [turn.role for turn in turns] == ['user', 'assistant'] * example.dialogue.round + ['user']
        for i, turn in enumerate(turns):
            heard = revealed(type(example.dialogue)(example.dialogue.person, turns[:i]))
            assert {line.removeprefix('- ') for line in turn.profile.splitlines()} == (
                heard if turn.role == 'assistant' else set()
            )


def test_replies_vary_and_leave_room_to_improve():
    replies = [parsed.reply for parsed in PARSED if parsed]
    assert len(set(replies)) > 120
    dialogues = [judged_dialogue(example.dialogue) for example in EXAMPLES]
    verdicts = judge_by_rules(dialogues, [parsed.facts for parsed in PARSED if parsed], replies, 0)
    mean = {name: sum(v.scores[name] for v in verdicts) / len(verdicts) for name in verdicts[0].scores}
    assert mean['naturalness'] == mean['logic'] == 1.0
    assert 0.4 < mean['relevance'] < 0.8
    assert 0.4 < mean['graded'] < 0.9


def test_seed_decides_everything():
    assert make_demonstrations(20, seed=1) == make_demonstrations(20, seed=1)
    assert make_demonstrations(20, seed=1) != make_demonstrations(20, seed=2)
    assert make_demonstrations(0, seed=1) == []
    with pytest.raises(ValueError, match='-1 demonstrations'):
        make_demonstrations(-1, seed=0)


def test_person_of_a_demonstration_has_four_topics():
    for example in EXAMPLES:
        assert len({split_fact(fact)[0] for fact in example.dialogue.person.facts} & {*TOPICS}) == 4

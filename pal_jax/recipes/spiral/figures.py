"""The words of the figures of SPIRAL."""

from __future__ import annotations

from pal_jax.run.glossary import COMPARED, MACHINE, OPTIMISED, PARTS, Words

MATCHES = {'tictactoe': 'tic-tac-toe', 'kuhn': 'Kuhn poker', 'negotiation': 'the negotiation'}
OPPONENTS = {  # who sits in the other seat
    'random': 'a player at random',
    'minimax': 'perfect play',
    'nash': 'an equilibrium',
    'best': 'the best response to it',
    'start': 'the policy before self-play',
    **{f'model{k}': f'model {k} of eval.opponents' for k in range(1, 10)},
}
SEATS = {'first': 'in the seat that moves first', 'second': 'in the other seat'}
WORDS = Words(
    figures={
        OPTIMISED: {
            'winrate': 'share of matches won against a player that moves at random, all games and seats',
            'winrate_{seat}': 'share of matches won against a player that moves at random, {seat}',
            'nashconv': 'how exploitable its Kuhn poker is: what both best responses gain, in chips (0: not at all)',
            'nashconv_last': 'the same of the last table alone, where the other is of the mean over training',
            'textarena_win': (
                'share of matches won in games of textarena against the policy before self-play and others'
            ),
            'crossplay': 'mean reward of the last policy against its past selves',
            '{match}_{opponent}_win': 'share of matches of {match} won against {opponent}',
            '{match}_{opponent}_{seat}_win': 'share of matches of {match} won against {opponent}, {seat}',
            '{match}_{opponent}_{seat}_reward': 'mean reward in {match} against {opponent}, {seat}',
        },
        COMPARED: {
            'none_winrate': 'control: share of matches won, learnt without a baseline',
            'none_winrate_{seat}': 'control: share of matches won, learnt without a baseline, {seat}',
            'none_nashconv': 'control: how exploitable it is, learnt without a baseline',
            'none_nashconv_last': 'control: the same of the last table alone',
            'none_value': 'control: what the first seat wins in self-play, learnt without a baseline',
            'shared_winrate': 'control: share of matches won, learnt with one baseline for both seats',
            'shared_winrate_{seat}': 'control: share of matches won, learnt with one baseline for both seats, {seat}',
            'shared_nashconv': 'control: how exploitable it is, learnt with one baseline for both seats',
            'shared_nashconv_last': 'control: the same of the last table alone',
            'shared_value': 'control: what the first seat wins in self-play, learnt with one baseline for both seats',
        },
        PARTS: {
            'legal': 'share of answers that are legal moves',
            '{match}_legal': 'share of answers that are legal moves of {match}',
            'legal_mass': (
                'how likely it says a legal move of Kuhn poker in a usual spelling, mean over what it can know'
            ),
            'legal_mass_least': 'the same where it is least',
            'nashconv_least': 'NashConv under the wording of the prompt where it is least',
            'nashconv_most': 'NashConv under the wording of the prompt where it is most',
            'value': 'chips that the first seat of Kuhn poker wins in self-play (-0.056 in an equilibrium)',
            'return_first': 'what the first seat wins in self-play',
            'moves': 'moves of a match',
            '{match}_{opponent}_{seat}_draw': 'share of drawn matches of {match} against {opponent}, {seat}',
        },
        MACHINE: {
            'matches': 'matches of the step',
            'turns': 'answers of the policy in the matches of the step',
            'baseline_{match}_{seat}': 'baseline of {match}, {seat}',
        },
    },
    vocabulary={'match': MATCHES, 'opponent': OPPONENTS, 'seat': SEATS},
    steps={'spiral': 'self-play: matches, then an update on them'},
    changes={'winrate': (1.0, 'mean winrate'), 'nashconv': (-1.0, 'mean nashconv')},
    shares=('winrate',),
)

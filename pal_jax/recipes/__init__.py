"""The methods, a folder or a file each, and the names of some in configs of earlier runs and in other libraries."""

RENAMED = {name: f'scorer.{name}' for name in ('reward', 'cost', 'moderation')}
# Names of methods in TRL and OpenRLHF, with the configs that have them here.
ELSEWHERE = {
    'grpo': 'rl',
    'rloo': 'rl --config.ppo.estimator=rloo',
    'ppo': 'rl --config.ppo.estimator=gae',
    'reinforce': 'rl --config.ppo.estimator=reinforce',
    'reinforce++': 'rl --config.ppo.estimator=reinforce',
    'ipo': 'dpo --config.dpo.loss=ipo',
    'rm': 'reward',
}
# Methods that are not here, and the config of the one that learns from the same data.
NEAREST = dict.fromkeys(('kto', 'orpo', 'simpo', 'cpo'), 'dpo')

"""The methods, a folder or a file each, and the names of some in configs of earlier runs and in other libraries."""

RENAMED = {name: f'scorer.{name}' for name in ('reward', 'cost', 'moderation')}
# Names of methods in TRL and OpenRLHF, with the configs that have them here.
ELSEWHERE = dict.fromkeys(('grpo', 'rloo', 'ppo', 'reinforce', 'reinforce++'), 'rl') | {'ipo': 'dpo', 'rm': 'reward'}

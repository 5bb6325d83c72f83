"""The methods, a folder or a file each, and the names that some had in the configs of earlier runs."""

RENAMED = {name: f'scorer.{name}' for name in ('reward', 'cost', 'moderation')}

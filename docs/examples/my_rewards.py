"""Rewards of your own for RLPA: --config.reward.function=docs/examples/my_rewards.py:asks_back"""


def asks_back(prompts, completions, replies, **rest):
    """1 for a reply that ends with a question, else 0; a malformed answer has no reply."""
    return [float(reply is not None and reply.strip().endswith('?')) for reply in replies]


def short(prompts, completions, **rest):
    """1 for an answer of up to 40 words, falling to 0 at 80."""
    lengths = [len(completion.split()) for completion in completions]
    return [min(1.0, max(0.0, 2.0 - length / 40)) for length in lengths]

"""Names that users of TRL, OpenRLHF and verl have in their fingers, with the names that this package has for them.

docs/howto/options.md explains the common ones.
"""

from __future__ import annotations

from collections.abc import Iterable

# The keys that may stand for an option, in the order in which they are looked for in a method's settings; one that
# begins with -- is an option of commands. A name with dots, as verl has them, stands before its last part.
KEYS = {
    'data.train_batch_size': ('rl.rollout_batch_size', 'dialogue.rollout_batch_size', 'data.batch_size'),
    'actor_rollout_ref.model.path': ('policy.source',),
    'actor_rollout_ref.rollout.n': ('rl.n_samples_per_prompt', 'dialogue.n_samples_per_prompt'),
    'max_response_length': ('sampling.max_tokens',),
    'adv_estimator': ('ppo.estimator',),
    'total_epochs': ('data.epochs', 'total_steps'),
    'total_training_steps': ('total_steps',),
    'model_name_or_path': ('policy.source',),
    'model': ('policy.source',),
    'pretrain': ('policy.source',),
    'learning_rate': ('optimizer.lr',),
    'actor_learning_rate': ('optimizer.lr',),
    'critic_learning_rate': ('critic.lr',),
    'lr': ('optimizer.lr',),
    'max_grad_norm': ('optimizer.max_norm',),
    'optim': ('optimizer.name',),
    'lr_scheduler_type': ('optimizer.decay', 'optimizer.min_ratio'),
    'warmup_ratio': ('optimizer.warmup_ratio',),
    'warmup_steps': ('optimizer.warmup_ratio',),
    'adam_beta1': ('optimizer.b1',),
    'adam_beta2': ('optimizer.b2',),
    'per_device_train_batch_size': ('data.batch_size', 'rl.rollout_batch_size', 'dialogue.rollout_batch_size'),
    'batch_size': ('data.batch_size', 'rl.rollout_batch_size', 'dialogue.rollout_batch_size'),
    'train_batch_size': ('data.batch_size', 'ppo.minibatches'),
    'gradient_accumulation_steps': ('data.batch_size', 'rl.rollout_batch_size', 'dialogue.rollout_batch_size'),
    'num_train_epochs': ('data.epochs', 'total_steps'),
    'epochs': ('data.epochs', 'ppo.epochs'),
    'max_steps': ('total_steps',),
    'packing': ('data.row_tokens', 'ppo.row_tokens'),
    'packing_samples': ('data.row_tokens', 'ppo.row_tokens'),
    'gradient_checkpointing': ('policy.remat',),
    'lora_rank': ('policy.lora.rank',),
    'lora_r': ('policy.lora.rank',),
    'lora_alpha': ('policy.lora.alpha',),
    'lora_dropout': ('policy.lora.dropout',),
    'target_modules': ('policy.lora.targets',),
    'lora_target_modules': ('policy.lora.targets',),
    'use_peft': ('policy.lora.rank',),
    'zero_stage': ('mesh.fsdp',),
    'deepspeed': ('mesh.fsdp',),
    'max_len': ('data.max_length', 'prompts.max_length'),
    'max_seq_length': ('data.max_length', 'prompts.max_length'),
    'num_generations': ('rl.n_samples_per_prompt', 'dialogue.n_samples_per_prompt'),
    'group_size': ('rl.n_samples_per_prompt', 'dialogue.n_samples_per_prompt'),
    'generations_per_prompt': ('rl.n_samples_per_prompt', 'dialogue.n_samples_per_prompt'),
    'max_completion_length': ('sampling.max_tokens',),
    'max_new_tokens': ('sampling.max_tokens',),
    'generate_max_len': ('sampling.max_tokens',),
    'max_prompt_length': ('prompts.max_length', 'dialogue.prompt_max_len'),
    'prompt_max_len': ('prompts.max_length', 'dialogue.prompt_max_len'),
    'num_iterations': ('ppo.epochs',),
    'max_epochs': ('ppo.epochs', 'data.epochs'),
    'epsilon': ('ppo.clip',),
    'epsilon_high': ('ppo.clip_high',),
    'eps_clip': ('ppo.clip',),
    'lambd': ('ppo.lam',),
    'beta': ('dpo.beta', 'ppo.kl_coef'),
    'init_kl_coef': ('ppo.kl_coef',),
    'use_kl_loss': ('ppo.kl_in',),
    'advantage_estimator': ('ppo.estimator',),
    'scale_rewards': ('ppo.estimator',),
    'loss_type': ('dpo.loss', 'ppo.loss_agg'),
    'vllm_num_engines': ('decode.shares',),
    'vllm_gpu_memory_utilization': ('decode.slots',),
    'gpu_memory_utilization': ('decode.slots',),
    'steps_per_generation': ('ppo.minibatches',),
    'reward_funcs': ('reward.function',),
    'reward_weights': ('reward.weights',),
    'reward_pretrain': ('reward.scorer',),
    'remote_rm_url': ('reward.function',),
    'dataset': ('data.train', 'prompts.train'),
    'dataset_name': ('data.train', 'prompts.train'),
    'train_dataset': ('data.train', 'prompts.train'),
    'eval_dataset': ('data.test', 'prompts.test'),
    'input_key': ('prompts.key',),
    'prompt_data': ('prompts.train', 'data.train'),
    'save_steps': ('checkpoint.every',),
    'save_strategy': ('checkpoint.every',),
    'save_total_limit': ('checkpoint.keep',),
    'eval_steps': ('eval.every',),
    'eval_strategy': ('eval.every',),
    'report_to': ('metrics.wandb',),
    'use_wandb': ('metrics.wandb',),
    'bf16': ('policy.dtype',),
    'fp16': ('policy.dtype',),
    'torch_dtype': ('policy.dtype',),
    'output_dir': ('--workdir',),
    'logging_dir': ('--workdir',),
    'save_path': ('--workdir',),
    'ckpt_path': ('--workdir',),
    'load_checkpoint': ('--workdir',),
    'resume_from_checkpoint': ('--workdir',),
}
# Options that need no key.
NEEDLESS = {
    **dict.fromkeys(
        ('logging_steps', 'logging_strategy', 'logging_first_step'), 'every step is written to metrics.jsonl of the run'
    ),
    **dict.fromkeys(
        ('use_vllm', 'vllm_mode'), 'a decoder of this package samples with the weights of the policy; leave it out'
    ),
    **dict.fromkeys(
        ('load_in_4bit', 'load_in_8bit', 'use_qlora', 'quantization_config'),
        'no weights are quantised while they are trained; --config.policy.lora.rank=16 and --config.policy.remat=full '
        'save memory',
    ),
    'precompute_ref_log_probs': 'the reference scores the pairs of each step; dpo.reference_free=True has none',
    'ref_model': 'the reference is the policy as it was before training',
    'flash_attn': 'the machine decides on the kernel of attention',
}
BATCHES = 'per_device_train_batch_size', 'batch_size'
# What a value means here, where the same number or word means something else.
UNITS = {
    'gradient_accumulation_steps': 'multiply it by this; data.micro_rows and ppo.micro_rows are the rows in memory',
    'gradient_checkpointing': 'full computes layers again in the backward pass',
    'report_to': 'the name of a project; TensorBoard is always written',
    **dict.fromkeys(('dataset', 'dataset_name', 'train_dataset'), 'a file, or hf:owner/name/FILE'),
    'warmup_steps': 'it is a share of the updates',
    'lr_scheduler_type': 'linear or cosine; for a constant rate optimizer.min_ratio=1 and optimizer.warmup_ratio=0',
    'scale_rewards': 'group_norm divides by the deviation of a prompt, dr_grpo does not',
    **dict.fromkeys(
        ('zero_stage', 'deepspeed'), '-1, the default, splits parameters, gradients and optimiser as stage 3 does'
    ),
    **dict.fromkeys(('model_name_or_path', 'model', 'pretrain'), 'with hf: before the name or folder'),
    **dict.fromkeys(
        ('vllm_gpu_memory_utilization', 'gpu_memory_utilization'), 'it counts the completions that are sampled at once'
    ),
    'steps_per_generation': 'it counts updates of a pass over the samples of a step',
    **dict.fromkeys(('bf16', 'fp16'), 'bfloat16 or float32; auto takes bfloat16 where the machine has it'),
}
# Likewise, of one of the keys that an option may be.
UNITS_OF_KEYS = {
    **dict.fromkeys(
        (('num_train_epochs', 'total_steps'), ('total_epochs', 'total_steps')),
        'epochs * prompts / rl.rollout_batch_size',
    ),
    ('train_batch_size', 'ppo.minibatches'): 'it counts minibatches',
    **{
        (option, 'data.batch_size'): 'the rows of an update: those of a device, times its accumulation steps, times '
        'the devices'
        for option in BATCHES
    },
    **{
        (option, 'rl.rollout_batch_size'): 'the prompts of a step: the completions of all devices, divided by '
        'rl.n_samples_per_prompt'
        for option in BATCHES
    },
    **{(option, 'dialogue.rollout_batch_size'): 'the people of a step' for option in BATCHES},
    ('beta', 'ppo.kl_coef'): "with ppo.kl_in=loss and ppo.kl_estimator=k3 for TRL's loss",
}
VALUES = {
    'grpo': 'group_norm', 'ppo': 'gae', 'reinforce++': 'reinforce', 'bf16': 'bfloat16', 'adam': 'adamw',
    'dapo': 'token_mean', 'bnpo': 'micro_token_mean', 'dr_grpo': 'constant',
}  # fmt: skip


def hint(name: str, known: Iterable[str] = ()) -> str:
    """The key that a name which is no key stands for, in words, or ''.

    Args:
      name: an option of another library, or the last part of a key without its sections.
      known: the keys of the settings; without them the first key that may be meant is told.
    """
    path, keys = name.replace('-', '_'), list(known)
    option = path if path in KEYS else path.rpartition('.')[2]
    if option in NEEDLESS:
        return f'; here {NEEDLESS[option]}'
    meant = [key for key in KEYS.get(option, ()) if not keys or key in keys or key.startswith('--')]
    meant += [key for key in keys if key.rpartition('.')[2] == option]
    if not meant:
        return ''
    key = meant[0] if meant[0].startswith('--') else f'--config.{meant[0]}'
    unit = UNITS.get(option) or UNITS_OF_KEYS.get((option, meant[0]))
    return f'; here it is {key}' + (f' ({unit})' if unit else '')

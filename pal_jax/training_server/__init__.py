"""A training server that the `tinker` client speaks to: see docs/serve_training.md."""

"""Rewards by person: PAL, its large form, and the audited bench of all methods."""

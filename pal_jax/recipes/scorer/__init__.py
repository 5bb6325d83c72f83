"""Scorers of replies: reward models, cost models and moderators are one recipe with three losses."""

"""Alembic's steps, forward only: `versions/` has one file for each, `env.py` runs them."""

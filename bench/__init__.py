"""Measures the gateway between an upstream and a load generator of our own, beside others, in turns.

``python -m bench --help`` from the repository's root; `docs/performance.md` explains what is measured and why.
"""

"""The demonstration: train on real preferences, read what was learned, hold it against the truth.

`tokenq demo` runs it; the stages are in `run`, what is measured about words in `words`.
"""

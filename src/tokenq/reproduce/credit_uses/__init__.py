"""What token and response rewards are used for, measured where the truth is known.

`film` trains on film review pairs and scores held-out ones, `ranking` and `cleaning` measure from
these scores; `locating` measures spans from the tables of `localisation`. Each use goes through the
library's own functions.
"""

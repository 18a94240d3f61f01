"""What the curves of a run mean: findings that say since when, how sure, why, and what to change.

One file a family of rules; a rule is a function of a run's history, and silent where it has nothing
to say or too little to go by.
"""

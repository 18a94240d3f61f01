"""Whether token credit finds what is wrong: training on labels of whole responses, scoring tokens.

`settings` and `arms` say what runs; a task (`film`, `planted`, ...) gives pairs to train on and
texts with a truth that training never sees; `bench` trains, `signals` scores, and `tables` keeps
what every run said of every token, so that any measure can be computed afterwards.
"""

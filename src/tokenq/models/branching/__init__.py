"""Next-token distributions along the branches of a growing tree, every token computed once.

`tree` knows which tokens follow which, `cached` and `rereading` what a model says behind them,
`branches` holds several models in step. Search is built on this; nothing here searches.
"""

"""The parts of `tokenq reproduce beam`: how well policies do when their likelihood is searched.

`material` says what is trained on, decoded and judged with; `policies` trains; `decoding` searches;
`film` and `debian` hold each task's texts and judges; `measuring` and `analysis` make the numbers.
"""

"""Published claims, each re-run by one command: `tokenq reproduce NAME`.

One file an experiment. A new one is a file and a line in `EXPERIMENTS`.
"""

EXPERIMENTS = {
    "theory": "every identity of the token MDP on random trees, with its measured error",
    "udrra": "what each objective converges to, and how fast, against the exact target",
    "objectives": "every objective on the same film review pairs, held-out measures",
    "reference": "the reference policy: beta, none, stronger, mismatched",
    "credit": "what credit says of single tokens, against what people and planted errors say",
    "uses": "what credit is worth for ranking responses, cleaning labels and locating errors",
    "beam": "quality and length against the number of beams, with controls that are not DPO",
    "decline": "implicit rewards over training: does chosen fall, and by what the KL says",
    "bmc": "bridged pairs and token weights, with the truth known for every token",
    "displacement": "what chosen answers lose to near-duplicates, who gains it, what prevents it",
}
"""Name (also the module in `tokenq.reproduce`) and what it shows."""

"""What a user can change, said the same way by every rule."""

SFT_FIRST = (
    "Train on the chosen answers first (`tokenq train` with `loss_type: [sft]`) and take the "
    "result as the model to start from and as the reference."
)
SFT_TERM = (
    "Add a likelihood term on the chosen answers: `loss_type: [sigmoid, sft]` with "
    "`loss_weights: [1.0, 0.1]`."
)
DPOP = "Use `loss_type: [dpop]`, which charges for every nat that a chosen answer loses."
FILTER = (
    "Look at the pairs that push their own chosen answer down, and leave out those that are not "
    "worth it: `tokenq filter --by gradient --keep 0.9`."
)
EARLIER = "Take an earlier checkpoint, from before this began, or stop here."
MORE_BETA = "Raise `beta`: it is what holds the policy near the reference."
LESS_BETA = "Lower `beta`, or raise the learning rate: the policy may hardly move as it is."
LOWER_RATE = "Lower `learning_rate`, or add `warmup_steps`."
LENGTH = (
    "Compare answers by their mean per token (`loss_type: [sigmoid_norm]`) or count what lies "
    "beyond the shorter answer less (`ld_alpha` below 1)."
)
MORE_DATA = "Train for fewer epochs or on more pairs."
CHECK_REFERENCE = (
    "Check that reference, chat template and tokenizer are those that the run uses, and that "
    "nothing (dropout, an adapter left on, another temperature) changes its log-probabilities."
)
PROBE = (
    "Watch the run with the monitor's probe (or replay its checkpoints), which reads held-out "
    "pairs and the reference's own responses."
)

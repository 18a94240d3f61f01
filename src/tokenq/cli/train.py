"""`tokenq train`: fine-tune a model on preferences or on answers."""

import shlex


def main(argv: list[str]) -> int:
    """Run the command; raises UserError for input that the user can mend."""
    from tokenq.training.arguments import TrainParser, parse

    if "--help" in argv or "-h" in argv or not argv:
        print(TrainParser().format_short_help())
        return 0 if argv else 2
    if "--help-all" in argv:
        print(TrainParser().format_help())
        return 0
    arguments = parse(argv)

    from tokenq.training.run import run

    run(*arguments, command=shlex.join(["tokenq", "train", *argv]))
    return 0

"""Preference rows of one prompt string and two answers, for models with or without a template."""

from typing import Any

from tokenq.errors import UserError

FORMATS = ("chat", "text")


def pair_row(prompt: str, chosen: str, rejected: str, format: str = "chat") -> dict[str, Any]:
    """``prompt``, ``chosen``, ``rejected``: messages (``chat``), or strings (``text``) for a model
    without a chat template, the prompt then followed by an empty line.

    Raises :class:`UserError` for another ``format``.
    """
    if format == "text":
        return {"prompt": f"{prompt}\n\n", "chosen": chosen, "rejected": rejected}
    if format != "chat":
        raise UserError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }

"""Every objective through the trainer: any kind of rows, whatever the micro-batches."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import datasets
import pytest
import torch
from tiny_training import (
    pairs,
    save_model,
    tiny_llama,
    tiny_tokenizer,
    tokenised,
    write_jsonl,
)

from tokenq.data import load_rows
from tokenq.errors import UserError
from tokenq.objectives import OBJECTIVES
from tokenq.training import PreferenceConfig, PreferenceTrainer
from tokenq.training.mixture import Mixture

CLASSES = {class_: name for name, class_ in reversed(OBJECTIVES.items())}


def with_features(rows: datasets.Dataset) -> datasets.Dataset:
    """Token features in their columns; the first token of every answer is another speaker's."""

    def add(row: dict[str, Any]) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            count = len(row[f"{side}_ids"])
            features[f"{side}_edits"] = [i % 3 == 0 for i in range(count)]
            features[f"{side}_segments"] = [-1, *(i // 3 for i in range(count - 1))]
            features[f"{side}_rewards"] = [0.1 * (i % 5) - 0.2 for i in range(count)]
        return features

    return rows.map(add)


def unpaired(count: int) -> datasets.Dataset:
    rows = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row[f"{side}_ids"], "label": good}
        for i, row in enumerate(tokenised(count))
        for side, good in [("chosen", True) if i % 3 else ("rejected", False)]
    ]
    return datasets.Dataset.from_list(rows)


def ranked(count: int) -> datasets.Dataset:
    """Lists of two to four answers, some of them tied."""
    source = list(tokenised(3 * count))
    rows = []
    for i in range(count):
        answers = [source[3 * i][f"{side}_ids"] for side in ("chosen", "rejected")]
        answers += [source[3 * i + k]["rejected_ids"] for k in (1, 2)][: i % 3]
        ranks = [0, 1, 1, 2][: len(answers)]
        rows.append(
            {
                "prompt_ids": source[3 * i]["prompt_ids"],
                "completions_ids": answers,
                "ranks": ranks,
            }
        )
    return datasets.Dataset.from_list(rows)


def trainer(folder: Path, rows: Any, **settings: Any) -> PreferenceTrainer:
    settings = {
        "per_device_train_batch_size": 6,
        "use_cpu": True,
        "report_to": "none",
        "reference_cache_dir": str(folder.parent / "cache"),
        **settings,
    }
    model = tiny_llama()
    with torch.no_grad():  # flat distributions: no loss is saturated
        model.lm_head.weight.mul_(0.02)
    made = PreferenceTrainer(
        model,
        args=PreferenceConfig(output_dir=str(folder), **settings),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    # Away from its reference, where most gradients are special.
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in made.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return made


def one_step(made: PreferenceTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first optimiser step, by the path that training takes."""
    batches = iter(made.get_train_dataloader())
    parts, _ = made.get_batch_samples(batches, 1, made.args.device)
    loss = made.training_step(made.model, parts[0])
    gradients = {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}
    return float(loss), gradients


def rows_for(kind: str) -> datasets.Dataset:
    if kind == "unpaired":
        return unpaired(12)
    if kind == "ranked":
        return ranked(12)
    return with_features(tokenised(12))


@pytest.mark.parametrize("name", sorted(set(CLASSES.values())))
def test_micro_batches_change_nothing(name: str, tmp_path: Path) -> None:
    rows = rows_for(OBJECTIVES[name].kind)
    whole, gradients = one_step(trainer(tmp_path / "a", rows, loss_type=[name]))
    parts, same = one_step(trainer(tmp_path / "b", rows, loss_type=[name], token_budget=60))
    assert abs(whole - parts) <= 1e-5 * max(1.0, abs(whole))
    assert any(bool(gradient.any()) for gradient in gradients.values())
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for weight, gradient in gradients.items():
        assert (gradient - same[weight]).abs().max() <= 2e-5 * max(scale, 1e-3), weight


@pytest.mark.parametrize(
    ("name", "rows"),
    [("kto", "preference"), ("plackett_luce", "preference"), ("dpo", "ranked"), ("sft", "ranked")],
)
def test_rows_of_another_kind_are_brought_to_form(name: str, rows: str, tmp_path: Path) -> None:
    loss, gradients = one_step(trainer(tmp_path / "run", rows_for(rows), loss_type=[name]))
    assert loss == loss
    assert any(bool(gradient.any()) for gradient in gradients.values())


def test_a_list_of_two_is_a_pair(tmp_path: Path) -> None:
    pairs = tokenised(8)
    lists = datasets.Dataset.from_list(
        [
            {
                "prompt_ids": row["prompt_ids"],
                "completions_ids": [row["chosen_ids"], row["rejected_ids"]],
                "ranks": [0, 1],
            }
            for row in pairs
        ]
    )
    loss, gradients = one_step(trainer(tmp_path / "pairs", pairs))
    same, others = one_step(trainer(tmp_path / "lists", lists))
    assert loss == pytest.approx(same, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-7, rtol=1e-4)


def test_tokens_of_other_speakers_do_not_count(tmp_path: Path) -> None:
    rows = tokenised(8)

    def silence(row: dict[str, Any]) -> dict[str, Any]:
        return {
            f"{side}_segments": [-1 if i == 1 else 0 for i in range(len(row[f"{side}_ids"]))]
            for side in ("chosen", "rejected")
        }

    made = trainer(tmp_path / "run", rows.map(silence))
    batch = made.splits["train"].collator(list(made.splits["train"].dataset))
    scores, _ = made._score(made.model, batch)
    side = scores.side(0)
    assert not side.mask[:, 1].any()
    assert side.mask[:, 0].all()


def test_coupled_rows_drop_out_the_same_units_in_both_passes(tmp_path: Path) -> None:
    from peft import LoraConfig

    def run(folder: str) -> dict[str, torch.Tensor]:
        adapter = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            lora_dropout=0.5,
            target_modules="all-linear",
            init_lora_weights=False,
        )
        made = PreferenceTrainer(
            tiny_llama(),
            args=PreferenceConfig(
                output_dir=str(tmp_path / folder),
                loss_type=["kto"],
                per_device_train_batch_size=6,
                token_budget=60,
                use_cpu=True,
                report_to="none",
            ),
            train_dataset=unpaired(12),
            processing_class=tiny_tokenizer(),
            peft_config=adapter,
        )
        seen: list[torch.Tensor] = []
        score = type(made._score).__call__

        def spy(self: Any, model: Any, batch: Any) -> Any:
            scores, metrics = score(self, model, batch)
            seen.append(torch.cat(scores.logps).detach())
            return scores, metrics

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(made._score), "__call__", spy)
            torch.manual_seed(1)
            one_step(made)
        half = len(seen) // 2
        assert half >= 2
        return {"first": torch.cat(seen[:half]), "second": torch.cat(seen[half:])}

    passes = run("a")
    assert torch.equal(passes["first"], passes["second"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpo", "holds sft rows, but loss_type dpo learns from preference or ranked rows"),
        ("kto", "holds sft rows, but loss_type kto learns from unpaired or preference rows"),
        ("plackett_luce", "learns from ranked or preference rows"),
    ],
)
def test_rows_that_lack_what_is_needed_are_refused(name: str, message: str, tmp_path: Path) -> None:
    rows = tokenised(4).rename_column("chosen_ids", "completion_ids").remove_columns("rejected_ids")
    with pytest.raises(UserError, match=message):
        PreferenceTrainer(
            "no-such-model",
            args=PreferenceConfig(output_dir=str(tmp_path), loss_type=[name]),
            train_dataset=rows,
            processing_class=tiny_tokenizer(),
        )


def test_token_features_that_are_missing_are_named(tmp_path: Path) -> None:
    names = [name for name in CLASSES.values() if _first_missing(name)]
    assert names
    for name in names:
        with pytest.raises(UserError, match=f"loss_type {name} needs {_first_missing(name)}"):
            PreferenceTrainer(
                "no-such-model",
                args=PreferenceConfig(output_dir=str(tmp_path), loss_type=[name]),
                train_dataset=tokenised(4),
                processing_class=tiny_tokenizer(),
            )


def _first_missing(name: str) -> str | None:
    needs = Mixture.from_config(PreferenceConfig(output_dir="unused", loss_type=[name])).needs
    return next((need for need in ("segments", "rewards") if need in needs), None)


def test_an_oracle_gives_the_token_rewards(tmp_path: Path) -> None:
    name = next(name for name in CLASSES.values() if _first_missing(name) == "rewards")
    policy = save_model(tmp_path / "oracle", tiny_llama(seed=3))
    start = save_model(tmp_path / "start", tiny_llama(seed=4))
    made = trainer(
        tmp_path / "run",
        tokenised(8),
        loss_type=[name],
        oracle=str(policy),
        oracle_reference=str(start),
        oracle_beta=0.5,
    )
    batch = made.splits["train"].collator(list(made.splits["train"].dataset))
    scores, _ = made._score(made.model, batch)
    from tokenq import token_logps

    prompts, responses = batch.flat()
    ours = torch.cat(scores.features["rewards"])
    wanted = 0.5 * (
        torch.cat(token_logps(tiny_llama(seed=3), prompts, responses))
        - torch.cat(token_logps(tiny_llama(seed=4), prompts, responses))
    )
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reference", "message"),
    [
        ({"loss_type": ["tdpo"]}, "uniform", "tdpo: compares the distributions of one model, but"),
        ({"loss_type": ["tdpo"]}, "base,other", "but reference is base, other; accepted: the name"),
        ({"sync_ref_model": True}, "marginal", "moves the weights of one model"),
        ({"loss_type": ["sepo"], "oracle": "{model}"}, None, "has no reference; accepted: oracle_"),
        ({"loss_type": ["sepo"], "oracle_beta": 0.0}, None, "oracle_beta: must be positive"),
    ],
    ids=["constant", "mixture", "moving", "oracle", "scale"],
)
def test_references_that_do_not_fit_are_refused_before_the_model_is_read(
    settings: dict[str, Any], reference: str | None, message: str, tmp_path: Path
) -> None:
    oracle = save_model(tmp_path / "oracle", tiny_llama())
    given = {k: str(oracle) if v == "{model}" else v for k, v in settings.items()}
    unread = save_model(tmp_path / "unread", tiny_llama())
    (unread / "model.safetensors").write_bytes(b"not to be read")
    with pytest.raises(UserError, match=message):
        PreferenceTrainer(
            unread,
            ref_model=reference,
            args=PreferenceConfig(output_dir=str(tmp_path / "out"), use_cpu=True, **given),
            train_dataset=tokenised(4),
            processing_class=tiny_tokenizer(),
        )


def streamed(folder: Path, loss_type: str, **settings: Any) -> PreferenceTrainer:
    rows = load_rows(write_jsonl(folder / "rows.jsonl", pairs(6)), streaming=True)
    return trainer(
        folder / "run",
        rows,
        loss_type=[loss_type],
        precompute_ref_log_probs=False,
        max_steps=1,
        **settings,
    )


@pytest.mark.parametrize(("name", "feature"), [("bmc", "edits"), ("dmpo", "segments")])
def test_streamed_rows_bring_their_features(name: str, feature: str, tmp_path: Path) -> None:
    made = streamed(tmp_path, name)
    (part,), _ = made.get_batch_samples(iter(made.get_train_dataloader()), 1, made.args.device)
    assert all(set(batch.features) == {feature} for batch in part.micro)
    loss = made.training_step(made.model, part)
    assert torch.isfinite(loss)


def test_an_oracle_cannot_score_a_stream_or_a_later_set(tmp_path: Path) -> None:
    models = {"oracle": tiny_llama(seed=3), "oracle_reference": tiny_llama(seed=4)}
    oracle: Any = {name: str(save_model(tmp_path / name, m)) for name, m in models.items()}
    with pytest.raises(UserError, match="a streamed set cannot be scored by the oracle"):
        streamed(tmp_path, "sepo", **oracle)
    made = trainer(tmp_path / "run", tokenised(4), loss_type=["sepo"], **oracle)
    with pytest.raises(UserError, match="the oracle's models are gone"):
        made.evaluate(tokenised(4, seed=9))


def test_a_checkpoint_is_refused_with_another_oracle(tmp_path: Path) -> None:
    start = str(save_model(tmp_path / "start", tiny_llama(seed=4)))

    def run(seed: int) -> PreferenceTrainer:
        return trainer(
            tmp_path / "run",
            tokenised(4),
            loss_type=["sepo"],
            oracle=str(save_model(tmp_path / "oracle", tiny_llama(seed=seed))),
            oracle_reference=start,
            max_steps=2,
            save_steps=1,
        )

    run(3).train()
    last = str(tmp_path / "run" / "checkpoint-1")
    run(3).train(last)
    with pytest.raises(UserError, match=r"oracle: its weights are not those that .*checkpoint-1"):
        run(5).train(last)


@pytest.mark.parametrize(("name", "rows"), [("dpo", "ranked"), ("kto", "preference")])
def test_evaluation_rows_may_be_of_another_kind(name: str, rows: str, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", rows_for(OBJECTIVES[name].kind), loss_type=[name],
                   precompute_ref_log_probs=False)  # fmt: skip
    metrics = made.evaluate(rows_for(rows))
    assert 0 < metrics["eval_loss"] < 10


def test_rows_that_compare_nothing_have_no_loss(tmp_path: Path) -> None:
    tied = ranked(6).map(lambda row: {"ranks": [0] * len(row["ranks"])})
    made = trainer(tmp_path / "run", ranked(6), precompute_ref_log_probs=False)
    assert made.evaluate(tied)["eval_loss"] == 0


def test_metrics_leave_out_what_others_say(tmp_path: Path) -> None:
    rows = with_features(tokenised(8))
    made = trainer(tmp_path / "run", rows)
    collate = made.splits["train"].collator
    batch = collate(list(made.splits["train"].dataset))
    scores, metrics = made._score(made.model, batch)
    side = scores.side(0)
    value, count = metrics["logps/chosen"]
    assert float(count) == len(side)
    expected = side.log_probs.sum(-1).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(metrics["mean_token_accuracy"][1]) == float(side.mask.sum())


def test_answers_to_other_prompts_must_fit_the_model_too(tmp_path: Path) -> None:
    """A long prompt with the next row's long answer is more than any row is by itself."""
    rows = datasets.Dataset.from_list(
        [
            {"prompt_ids": [5] * 250, "completion_ids": [6] * 2, "label": True},
            {"prompt_ids": [5] * 2, "completion_ids": [6] * 40, "label": False},
        ]
    )
    with pytest.raises(UserError, match="a row has 290 tokens, but the model has 256 positions"):
        trainer(tmp_path / "run", rows, loss_type=["kto"])
    trainer(tmp_path / "cut", rows, loss_type=["kto"], max_length=256)


def test_a_name_of_several_objectives_has_one_type() -> None:
    """They share one flag, whose type and accepted values are those of the first."""
    kinds: dict[str, set[Any]] = {}
    for class_ in CLASSES:
        hints = get_type_hints(class_)
        for field in dataclasses.fields(class_):
            kinds.setdefault(field.name, set()).add(hints[field.name])
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}


def test_label_smoothing_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    config = PreferenceConfig(output_dir=str(tmp_path), loss_type=["ipo"], label_smoothing=0.1)
    with pytest.raises(UserError, match="label_smoothing: is no hyper-parameter of ipo"):
        Mixture.from_config(config)

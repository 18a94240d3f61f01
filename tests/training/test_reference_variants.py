"""References beside the policy's start: constants, no prompt, means of several, a moving one."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_training import save_model, tiny_gpt2, tiny_llama, tiny_tokenizer, tokenised
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from tokenq.errors import UserError
from tokenq.training import PreferenceConfig, PreferenceTrainer
from tokenq.training.arguments import parse
from tokenq.training.moving_reference import WEIGHTS_FILE
from tokenq.training.reference_names import each_of

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
LIVE = {"precompute_ref_log_probs": False}
EOS, ROWS = 1, 352


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))


def trainer_of(folder: Path, reference: Any = None, **options: Any) -> PreferenceTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return PreferenceTrainer(
        options.pop("model", None) or tiny_llama(),
        reference,
        args=PreferenceConfig(**{**settings, **options.pop("settings", {})}),
        train_dataset=options.pop("rows", tokenised(14)),
        processing_class=tiny_tokenizer(),
        **options,
    )


def sides(trainer: PreferenceTrainer) -> tuple[list[Any], list[Any], list[Any]]:
    rows = trainer.splits["train"].dataset[:]
    return rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"]


def brute(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """[T] log-probs by a plain forward of transformers."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logits[places, torch.tensor(response)].float()


@pytest.mark.parametrize(
    ("name", "a_token"), [("none", 0.0), ("uniform", -math.log(ROWS))], ids=["none", "uniform"]
)
def test_a_constant_reference_gives_the_loss_worked_out_by_hand(
    tmp_path: Path, name: str, a_token: float
) -> None:
    trainer = trainer_of(
        tmp_path,
        name,
        settings={
            "beta": 0.02,
            "max_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": 14,
        },
    )
    model = copy.deepcopy(trainer.model)
    losses = []
    for prompt, chosen, rejected in zip(*sides(trainer), strict=True):
        ratio = brute(model, prompt, chosen).sum() - brute(model, prompt, rejected).sum()
        ratio -= a_token * (len(chosen) - len(rejected))
        losses.append(-logsigmoid(0.02 * ratio))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(
        torch.stack(losses).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("settings", [{}, LIVE], ids=["cache", "live"])
def test_marginal_shows_the_response_without_its_prompt(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    other = save_model(tmp_path / "other", tiny_llama(seed=3))
    for given, scorer in (("marginal", tiny_llama()), (f"marginal:{other}", tiny_llama(seed=3))):
        trainer = trainer_of(tmp_path / "out", given, settings=settings)
        prompts, chosen, _ = sides(trainer)
        assert trainer.reference is not None
        for values, response in zip(trainer.reference.logps(prompts, chosen), chosen, strict=True):
            assert torch.allclose(values, brute(scorer, [EOS], response), atol=1e-5)


def test_marginal_and_conditional_share_a_cache_folder_and_no_rows(tmp_path: Path) -> None:
    plain, marginal = (trainer_of(tmp_path, given) for given in (None, "marginal"))
    prompts, chosen, _ = sides(plain)
    assert plain.reference is not None
    assert marginal.reference is not None
    ours, theirs = (t.reference.logps(prompts, chosen) for t in (plain, marginal))  # type: ignore[union-attr]
    assert torch.allclose(ours[0], brute(tiny_llama(), prompts[0], chosen[0]), atol=1e-5)
    assert not torch.allclose(ours[0], theirs[0], atol=1e-2)
    assert len(list((tmp_path / "home" / "reference").iterdir())) == 1


def test_marginal_needs_a_token_to_start_from(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no BOS and no EOS"):
        PreferenceTrainer(
            tiny_llama(),
            "marginal",
            args=PreferenceConfig(output_dir=str(tmp_path), use_cpu=True),
            train_dataset=tokenised(4),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize("settings", [{}, LIVE], ids=["cache", "live"])
def test_a_mixture_is_the_mean_of_token_probabilities(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folders = [save_model(tmp_path / f"{seed}", tiny_llama(seed=seed)) for seed in (1, 2)]
    loaded = tiny_gpt2(seed=4)
    given = [f"{folders[0]},{folders[1]}", loaded, "uniform"]
    trainer = trainer_of(tmp_path / "out", given, settings=settings)
    prompts, _, rejected = sides(trainer)
    models = [tiny_llama(seed=1), tiny_llama(seed=2), loaded]
    assert trainer.reference is not None
    found = trainer.reference.logps(prompts, rejected)
    for prompt, response, values in zip(prompts, rejected, found, strict=True):
        each = [brute(model, prompt, response).exp() for model in models]
        expected = ((sum(each) + 1 / ROWS) / 4).log()
        assert torch.allclose(values, expected, atol=1e-5)
    assert f"mean of {folders[0]}, {folders[1]}" in trainer.model_card()


def test_every_reference_has_an_identity_of_its_own(tmp_path: Path) -> None:
    other = str(save_model(tmp_path / "other", tiny_llama(seed=3)))
    given = [
        None,
        "none",
        "uniform",
        "marginal",
        other,
        f"marginal:{other}",
        [other, "uniform"],
        ["marginal", other],
        f"{other},marginal:{other}",
    ]
    trainers = [trainer_of(tmp_path / "out", one, rows=tokenised(2)) for one in given]
    identities = [trainer.reference_identity for trainer in trainers]
    for i, first in enumerate(identities):
        for j, second in enumerate(identities):
            assert first is not None
            assert second is not None
            if i == j:
                first.verify(second)
                continue
            with pytest.raises(UserError, match="the reference has changed"):
                first.verify(second)


def test_order_does_not_matter_in_a_mixture(tmp_path: Path) -> None:
    both = [
        trainer_of(tmp_path / "out", given, rows=tokenised(2)).reference_identity
        for given in ("uniform,marginal", ["marginal", "uniform"])
    ]
    assert both[0] is not None
    assert both[1] is not None
    both[0].verify(both[1])


def test_names_are_split_and_checked(tmp_path: Path) -> None:
    assert each_of(None) == [None]
    assert each_of("a, b") == ["a", "b"]
    assert each_of(["a", "b,uniform"]) == ["a", "b", "uniform"]
    comma = tmp_path / "a,b"
    comma.mkdir()
    assert each_of(str(comma)) == [str(comma)]
    with pytest.raises(UserError, match="counting measure"):
        each_of("none,a")
    with pytest.raises(UserError, match="empty name"):
        each_of("a,,b")


def test_the_command_line_takes_one_reference_or_several(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("reference: [a, uniform]\noutput_dir: out\n")
    assert parse(["--config", str(config)])[0].reference == ["a", "uniform"]
    assert parse(["--reference", "a", "--output_dir", "out"])[0].reference == ["a"]
    assert parse(["--output_dir", "out"])[0].reference is None


def test_a_reference_with_another_vocabulary_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "other", tiny_llama(seed=3))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"never read")
    for given in (str(folder), f"marginal:{folder}", f"uniform,{folder}"):
        with pytest.raises(UserError, match=r"do not share a vocabulary: token id \d+ is"):
            trainer_of(tmp_path / "out", given)


def test_a_loaded_reference_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    small = tiny_llama(seed=3)
    small.resize_token_embeddings(100)
    with pytest.raises(UserError, match="embeddings for 100 tokens"):
        trainer_of(tmp_path / "out", small)


# ---- The moving reference ----


class Watch(TrainerCallback):
    """Keeps the policy's weights after every step."""

    def __init__(self) -> None:
        self.policies: list[list[Tensor]] = []

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.policies.append([weight.detach().clone() for weight in model.parameters()])


def moving(folder: Path, **options: Any) -> PreferenceTrainer:
    settings = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.3, "ref_model_sync_steps": 2}
    return trainer_of(folder, settings=settings | options.pop("settings", {}), **options)


def reference_weights(trainer: PreferenceTrainer) -> list[Tensor]:
    model: Any = trainer.reference.scorer  # type: ignore[union-attr]
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "tied head"])
def test_the_reference_after_three_moves(tmp_path: Path, make: Any) -> None:
    watch = Watch()
    trainer = moving(tmp_path, model=make(), callbacks=[watch])
    trainer.train()
    expected = [weight.detach().clone() for weight in make().parameters()]
    for step in (2, 4, 6):
        policy = watch.policies[step - 1]
        expected = [0.7 * old + 0.3 * new for old, new in zip(expected, policy, strict=True)]
    found = reference_weights(trainer)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(found[0], next(make().parameters()), atol=1e-3)


def test_one_move_is_that_of_trl(tmp_path: Path) -> None:
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    trainer = moving(tmp_path)
    target, policy = tiny_llama(), tiny_llama(seed=5)
    for _ in range(2):
        trainer.reference.move(policy, 0.6)  # type: ignore[union-attr]
        callbacks.SyncRefModelCallback._sync_target_model(policy, target, 0.6)
    for ours, theirs in zip(reference_weights(trainer), target.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_reference_that_is_the_policy_again_gives_log_two_at_every_step(tmp_path: Path) -> None:
    trainer = moving(tmp_path, settings={"ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1})
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx([math.log(2)] * 6, abs=1e-5)


class Stop(TrainerCallback):
    """Ends the process's work in the middle of a step, as a crash would."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_with_the_reference_where_it_was(tmp_path: Path) -> None:
    # Moves at 2 and 4, a checkpoint at 3: the reference there is neither the start nor the policy.
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = moving(tmp_path / "whole", settings=settings)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        moving(tmp_path / "broken", settings=settings, callbacks=[Stop()]).train()
    again = moving(tmp_path / "broken", settings=settings)
    again.train(resume_from_checkpoint=True)
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(reference_weights(again), reference_weights(whole), strict=True):
        assert torch.equal(ours, theirs)
    losses = [
        [line["loss"] for line in trainer.state.log_history if "loss" in line]
        for trainer in (again, whole)
    ]
    assert losses[0] == losses[1]
    saved = [load_file(tmp_path / d / "checkpoint-6" / WEIGHTS_FILE) for d in ("whole", "broken")]
    assert all(torch.equal(values, saved[1][name]) for name, values in saved[0].items())


def test_a_checkpoint_without_the_moved_weights_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3}
    trainer_of(tmp_path, settings=settings).train()
    with pytest.raises(UserError, match=r"has no reference\.safetensors"):
        moving(tmp_path, settings=settings).train(resume_from_checkpoint=True)


def test_the_cache_is_switched_off_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = moving(tmp_path)
    assert not trainer.args.precompute_ref_log_probs
    assert "the reference moves, so it is run in every step" in caplog.text


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"peft_config": LORA}, "an adapter's reference is its base"),
        ({"reference": "uniform"}, "moves the weights of one model, but reference is uniform"),
        ({"reference": "marginal"}, "moves the weights of one model"),
        ({"reference": tiny_llama(layers=1)}, r"weight model\.layers\.1\..* absent"),
        ({"settings": {"ref_model_mixup_alpha": 0.0}}, r"must lie in \(0, 1\], got 0"),
        ({"settings": {"ref_model_sync_steps": 0}}, "ref_model_sync_steps: must be positive"),
    ],
    ids=["adapter", "constant", "marginal", "architecture", "alpha", "steps"],
)
def test_what_cannot_move_is_refused(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        moving(tmp_path, **options)

"""Guided laws against exact MDPs, against each other, and against laws worked out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.support.small_pairs import random_model, small_pair, small_tokenizer
from torch import Tensor

from tokenq.errors import UserError
from tokenq.mdp.arrays import Array, log_softmax
from tokenq.mdp.token_mdp import Solution, TokenMDP
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.branches import Branches, Guidance
from tokenq.models.pair import Pair, load_pair
from tokenq.search.beam import beam_search
from tokenq.search.guidance import AlignmentAware, ProxyTuning, RewardGuided, ValueGuided, likeliest
from tokenq.search.guided import (
    alignment_aware,
    proxy_tuning,
    reward_guided,
    value_guided,
)
from tokenq.search.methods import METHODS
from tokenq.search.prefixes import Prefix
from tokenq.search.sampling import greedy, sample
from tokenq.search.tabular import TabularModel, tabular_models
from tokenq.search.values import PrefixValue

BETA = 0.4
PROMPTS = ["Write one sentence", "The plot", "A warm, funny"]


def problem(horizon: int = 3, vocabulary: int = 3, seed: int = 0) -> tuple[TokenMDP, Solution]:
    tree = PrefixTree(vocabulary=vocabulary, horizon=horizon, prompts=2, eos=0)
    mdp = TokenMDP.random(tree, np.random.default_rng(seed))
    return mdp, mdp.solve(BETA)


def law(mdp: TokenMDP, guidance: Guidance, **log_policies: Array) -> Array:
    """[S, A] the guided law in every state that can be asked for a token."""
    models = tabular_models(mdp.tree, **log_policies)
    found = np.full(mdp.reward.shape, np.nan)
    with Branches(models, [[p] for p in range(mdp.tree.prompts)], guidance) as branches:
        frontier = branches.open()
        while len(frontier):
            states = [_state(models["reference"], branches, int(node)) for node in frontier.nodes]
            found[states] = frontier.searched.numpy()
            rows, tokens = likeliest(frontier.searched, None)
            going = [
                place
                for place, (row, token) in enumerate(zip(rows, tokens, strict=True))
                if token != mdp.tree.eos
                and int(branches.tree.depth(frontier.nodes[row])) + 1 < mdp.tree.horizon
            ]
            if not going:
                break
            frontier = branches.extend(frontier.moves(rows[going], tokens[going]))
    return found


def _state(model: TabularModel, branches: Branches, node: int) -> int:
    prompt = branches.tree.prompts[int(branches.tree.prompt(torch.tensor([node])))]
    return model.state(prompt, branches.tree.response(node))


class SoftValue:
    """Rewards so far and V* of what comes: the soft value of a prefix under the reference."""

    def __init__(self, mdp: TokenMDP, solution: Solution) -> None:
        self.mdp, self.solution = mdp, solution
        self.asked: list[int] = []

    def __call__(self, prefixes: Sequence[Prefix]) -> list[float]:
        self.asked.append(len(prefixes))
        return [self._one(prefix) for prefix in prefixes]

    def _one(self, prefix: Prefix) -> float:
        tree, total = self.mdp.tree, 0.0
        [prompt], tokens = prefix.prompt_ids, prefix.response_ids
        for depth, token in enumerate(tokens):
            total += self.mdp.reward[tree.state(prompt, tokens[:depth]), token]
        if tokens[-1] == tree.eos or len(tokens) == tree.horizon:
            return float(total)
        return float(total + self.solution.v[tree.state(prompt, tokens)])


def test_strength_one_on_the_reference_is_the_policy() -> None:
    mdp, solution = problem()
    guided = law(
        mdp, ProxyTuning(1.0, "reference"), policy=solution.log_policy, reference=mdp.ref_logps
    )
    np.testing.assert_allclose(guided, solution.log_policy, atol=1e-12)


def test_strength_zero_is_the_base() -> None:
    mdp, solution = problem()
    other = log_softmax(np.random.default_rng(5).standard_normal(mdp.reward.shape))
    models = {"policy": solution.log_policy, "reference": mdp.ref_logps, "base": other}
    np.testing.assert_allclose(law(mdp, ProxyTuning(0.0), **models), other, atol=1e-12)


def test_the_exponent_is_the_advantage_over_the_beta_of_training() -> None:
    """Eq. 15 with its scale corrected: base * exp(strength / beta * A*)."""
    mdp, solution = problem()
    other = log_softmax(np.random.default_rng(5).standard_normal(mdp.reward.shape))
    models = {"policy": solution.log_policy, "reference": mdp.ref_logps, "base": other}
    expected = log_softmax(other + 1.7 / BETA * solution.advantage)
    np.testing.assert_allclose(law(mdp, ProxyTuning(1.7), **models), expected, atol=1e-12)


@pytest.mark.parametrize("strength", [0.25, 0.5, 2.0])
def test_the_last_step_is_the_policy_of_another_beta(strength: float) -> None:
    mdp, solution = problem()
    wanted = mdp.solve(BETA / strength).log_policy
    guided = law(
        mdp, ProxyTuning(strength, "reference"), policy=solution.log_policy, reference=mdp.ref_logps
    )
    first, last = mdp.tree.levels[0], mdp.tree.levels[-1]
    np.testing.assert_allclose(guided[last], wanted[last], atol=1e-12)
    # Before the last step the rule is another policy: it does not look ahead at the new beta.
    assert np.abs(np.exp(guided[first]) - np.exp(wanted[first])).max() > 1e-3


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_one_token_responses_are_realigned_exactly(strength: float) -> None:
    mdp, solution = problem(horizon=1, vocabulary=5)
    guided = law(
        mdp, ProxyTuning(strength, "reference"), policy=solution.log_policy, reference=mdp.ref_logps
    )
    np.testing.assert_allclose(guided, mdp.solve(BETA / strength).log_policy, atol=1e-12)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_whole_responses_reweighted_at_once_are_the_policy_of_another_beta(strength: float) -> None:
    """What the token-wise rule is an approximation of: normalised once, by the prompt."""
    mdp, solution = problem()
    tree = mdp.tree
    ratio = tree.totals(solution.log_policy) - tree.totals(mdp.ref_logps)
    tilted = log_softmax(tree.totals(mdp.ref_logps) + strength * ratio)
    wanted = tree.totals(mdp.solve(BETA / strength).log_policy)
    np.testing.assert_allclose(tilted, wanted, atol=1e-12)


def test_the_guided_law_is_optimal_for_the_advantage_less_its_normaliser() -> None:
    """Every state's normaliser is a reward that the token-wise rule takes away."""
    mdp, solution = problem()
    strength, beta = 0.5, BETA / 0.5
    guided = law(
        mdp, ProxyTuning(strength, "reference"), policy=solution.log_policy, reference=mdp.ref_logps
    )
    asked = ~np.isnan(guided).any(-1)
    weights = mdp.ref_logps + solution.advantage / beta
    normaliser = beta * np.log(np.exp(weights).sum(-1, keepdims=True))
    again = mdp.with_reward(solution.advantage - normaliser).solve(beta)
    np.testing.assert_allclose(again.log_policy[asked], guided[asked], atol=1e-12)


def test_the_exact_prefix_value_gives_the_optimal_policy() -> None:
    mdp, solution = problem()
    guidance = ValueGuided(SoftValue(mdp, solution), 1 / BETA, None, "reference")
    guided = law(mdp, guidance, reference=mdp.ref_logps, policy=mdp.ref_logps)
    np.testing.assert_allclose(guided, solution.log_policy, atol=1e-12)


def test_beams_under_the_exact_value_find_the_likeliest_of_the_optimal_policy() -> None:
    mdp, solution = problem(horizon=4)
    value = SoftValue(mdp, solution)
    models = tabular_models(mdp.tree, policy=mdp.ref_logps)
    [one, two] = value_guided(
        models, [[0], [1]], value, 1 / BETA, None, 4, search="beam", num_beams=27, length_penalty=0
    )
    exact = tabular_models(mdp.tree, policy=solution.log_policy)
    [first, second] = beam_search(exact, [[0], [1]], 27, 4, length_penalty=0)
    assert [each.token_ids for each in one] == [each.token_ids for each in first]
    assert [each.token_ids for each in two] == [each.token_ids for each in second]
    assert one[0].score == pytest.approx(first[0].score, abs=1e-12)


def test_candidates_of_a_step_are_asked_in_one_call_and_once() -> None:
    mdp, solution = problem()
    value = SoftValue(mdp, solution)
    models = tabular_models(mdp.tree, policy=mdp.ref_logps)
    # Three equal prompts: their first candidates are the same prefixes.
    value_guided(models, [[0], [0], [0]], value, 1.0, None, 3)
    assert value.asked == [3] * len(value.asked)


def test_top_k_leaves_the_rest_out() -> None:
    mdp, solution = problem(vocabulary=4)
    guidance = ValueGuided(SoftValue(mdp, solution), 1 / BETA, 2, "reference")
    guided = law(mdp, guidance, reference=mdp.ref_logps, policy=mdp.ref_logps)
    root = mdp.tree.state(0, ())
    best = np.argsort(mdp.ref_logps[root])[-2:]
    assert set(np.flatnonzero(guided[root] > -np.inf)) == set(best)
    expected = solution.log_policy[root][best]
    np.testing.assert_allclose(
        guided[root][best], expected - np.log(np.exp(expected).sum()), atol=1e-12
    )


def test_the_implicit_prefix_value_on_the_reference_is_the_policy() -> None:
    """base * exp(log ratio) = policy, with real models and what they said along the branch."""
    pair = small_pair()
    guidance = ValueGuided(PrefixValue(BETA), 1 / BETA, 400, "reference")
    [[guided]] = beam_search(
        {"policy": pair.policy, "reference": pair.reference},
        [[5, 6, 7]],
        1,
        6,
        guidance=guidance,
        eos_token_id=(),
    )
    torch.testing.assert_close(guided.logps, guided.model_logps["policy"], atol=1e-4, rtol=0)


class _Fixed:
    """Models that say the same in every state."""

    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, chances: Sequence[float]) -> None:
        self.logps = torch.tensor(chances).double().log()
        self.vocabulary = len(chances)

    def open(self, tree: object) -> Tensor:
        return self.logps[None]

    def read(self, tree: object, nodes: Tensor) -> Tensor:
        return self.logps.expand(len(nodes), -1)

    def retain(self, tree: object) -> None: ...

    def close(self) -> None: ...


def test_alignment_aware_by_hand() -> None:
    """Ratios 0.8, 3, 20: the last is not plausible until alpha falls below 0.02 / 0.68."""
    policy, reference = _Fixed([0.68, 0.30, 0.02]), _Fixed([0.85, 0.149, 0.001])
    models = {"policy": policy, "reference": reference}
    chosen = {
        alpha: alignment_aware(models, [[0]], alpha, 1)[0][0].token_ids[0]
        for alpha in (1.0, 0.5, 0.4, 0.1, 0.03, 0.02, 0.0)
    }
    assert chosen == {1.0: 0, 0.5: 0, 0.4: 1, 0.1: 1, 0.03: 1, 0.02: 2, 0.0: 2}


def test_alignment_aware_excludes_what_both_models_exclude() -> None:
    models = {"policy": _Fixed([0.5, 0.5, 0.0]), "reference": _Fixed([0.4, 0.6, 0.0])}
    [[found]] = alignment_aware(models, [[0]], 0.0, 2)
    assert found.token_ids == [0, 0]


def test_alignment_aware_is_greedy_log_ratio_search() -> None:
    pair = small_pair()
    guided = alignment_aware(pair, PROMPTS, 0.2, 12)
    searched = beam_search(pair, PROMPTS, 1, 12, "log_ratio", plausibility=0.2)
    for one, other in zip(guided.best, searched.best, strict=True):
        assert one.token_ids == other.token_ids
    plain = greedy(pair, PROMPTS, 12)
    sharp = alignment_aware(pair, PROMPTS, 1.0, 12)
    assert [each.token_ids for each in sharp.best] == [each.token_ids for each in plain.best]


def test_a_pair_realigns_itself() -> None:
    pair = small_pair()
    same = proxy_tuning(pair, PROMPTS, max_new_tokens=10)
    plain = greedy(pair, PROMPTS, 10)
    assert [each.token_ids for each in same.best] == [each.token_ids for each in plain.best]
    for one, other in zip(same.best, plain.best, strict=True):
        torch.testing.assert_close(one.logps, other.logps, atol=1e-4, rtol=0)
    none = proxy_tuning(pair, PROMPTS, strength=0, max_new_tokens=10)
    theirs = greedy({"policy": pair.reference}, [each.prompt_ids for each in none.best], 10)
    assert [each.token_ids for each in none.best] == [each.token_ids for each in theirs.best]
    assert none[0][0].kl is not None


def sibling(rows: int, seed: int = 7) -> Pair:
    tokenizer = small_tokenizer()
    return load_pair(random_model("llama", rows, seed), tokenizer=tokenizer)


def test_a_pair_guides_another_model() -> None:
    pair, large = small_pair(), sibling(len(small_tokenizer()))
    [found] = proxy_tuning(pair, PROMPTS[:1], large, 0.7, 8)
    result = found[0]
    assert set(result.model_logps) == {"policy", "reference", "base"}
    prefix = result.prompt_ids
    for place, token in enumerate(result.token_ids):
        ids = torch.tensor([prefix + result.token_ids[:place]])
        with torch.no_grad():
            base, policy, reference = (
                model(ids).logits[0, -1].double().log_softmax(-1)
                for model in (large.policy, pair.policy, pair.reference)
            )
        expected = (base + 0.7 * (policy - reference)).log_softmax(-1)
        assert token == int(expected.argmax())
        assert float(result.logps[place]) == pytest.approx(float(expected[token]), abs=1e-4)
    bare = proxy_tuning(pair, PROMPTS[:1], large.policy, 0.7, 8)
    assert bare[0][0].token_ids == result.token_ids
    torch.testing.assert_close(result.credit(0.1).rewards, result.rewards(0.1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("search", ["greedy", "sample", "beam"])
def test_padding_rows_of_a_larger_sibling_do_not_count(search: str) -> None:
    """A head with rows that no token has, all but impossible, changes nothing."""
    size = len(small_tokenizer())
    pair, large = small_pair(), sibling(size)
    padded = sibling(size)
    padded.policy.resize_token_embeddings(size + 8, mean_resizing=False)
    with torch.no_grad():
        head = padded.policy.get_output_embeddings().weight
        head[size:] = 0.0
    options = {"seed": 3} if search == "sample" else {"num_beams": 3} if search == "beam" else {}
    plain = proxy_tuning(pair, PROMPTS, large, 0.7, 8, search=search, **options)
    wider = proxy_tuning(pair, PROMPTS, padded, 0.7, 8, search=search, **options)
    for one, other in zip(plain.best, wider.best, strict=True):
        assert one.token_ids == other.token_ids
        torch.testing.assert_close(one.logps, other.logps, atol=1e-3, rtol=0)


def test_other_vocabularies_are_refused_by_name() -> None:
    pair = small_pair()
    words = small_tokenizer(size=300)
    other = load_pair(random_model("llama", len(words), 7), tokenizer=words)
    pair.policy_name, other.policy_name = "small-dpo", "large"
    with pytest.raises(UserError, match="'small-dpo' and 'large' do not share a vocabulary"):
        proxy_tuning(pair, PROMPTS, other)
    unknown = random_model("llama", 500, 7)
    with pytest.raises(UserError, match=r"'small-dpo' scores 397 tokens and .* 500, and without"):
        proxy_tuning(pair, PROMPTS, unknown)
    with pytest.raises(UserError, match=r"base is 'large'; accepted: a loaded model"):
        proxy_tuning(pair, PROMPTS, "large")


def count_letters(prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
    assert all(isinstance(prompt, str) for prompt in prompts)
    return [float(response.count("e") + response.count("a")) for response in responses]


@pytest.mark.parametrize("search", ["greedy", "sample", "beam"])
def test_a_reward_guides(search: str) -> None:
    pair = small_pair()
    plain = reward_guided(pair, PROMPTS, count_letters, 0.0, 20, 12, search=search)
    guided = reward_guided(pair, PROMPTS, count_letters, 8.0, 20, 12, search=search)
    scores = [
        [sum(count_letters(["x"], [each.text or ""])) for each in results.best]
        for results in (plain, guided)
    ]
    assert sum(scores[1]) > sum(scores[0])


def test_a_reward_sees_prompts_as_given_and_whole_texts() -> None:
    pair, seen = small_pair(), []

    def reward(prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
        seen.extend(zip(prompts, responses, strict=True))
        return [0.0] * len(responses)

    messages = [{"role": "user", "content": "The plot"}]
    ids = pair.tokenizer("A warm")["input_ids"]
    results = reward_guided(pair, [messages, ids], reward, 1.0, 3, 4)
    assert {str(prompt) for prompt, _ in seen} == {str(messages), "A warm"}
    last = results[0][0]
    assert (messages, pair.tokenizer.decode(last.token_ids, skip_special_tokens=True)) in seen


def test_argmax_of_a_guided_step_by_hand() -> None:
    """ARGS: argmax of log pi + w * r over the k likeliest tokens."""
    pair = small_pair()
    [[found]] = reward_guided(pair, PROMPTS[:1], count_letters, 0.8, 10, 6)
    text_ids: list[int] = []
    for token in found.token_ids:
        with torch.no_grad():
            logits = pair.policy(torch.tensor([found.prompt_ids + text_ids])).logits[0, -1]
        best = logits.log_softmax(-1).topk(10)
        texts = [
            pair.tokenizer.decode([*text_ids, int(each)], skip_special_tokens=True)
            for each in best.indices
        ]
        rewards = torch.tensor(count_letters(["x"], texts))
        assert token == int(best.indices[(best.values + 0.8 * rewards).argmax()])
        text_ids.append(token)


@pytest.mark.parametrize("guidance", [ProxyTuning(0.5, "reference"), AlignmentAware(0.05)])
def test_guided_searches_do_not_depend_on_the_batch(guidance: Guidance) -> None:
    pair = small_pair()
    for search in (beam_search, sample):
        together = search(pair, PROMPTS, max_new_tokens=8, guidance=guidance)
        alone = search(pair, PROMPTS[::-1], max_new_tokens=8, guidance=guidance, batch_size=1)
        for one, other in zip(together, list(alone)[::-1], strict=True):
            assert [each.token_ids for each in one] == [each.token_ids for each in other]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("greedy", {}),
        ("sample", {"num_return_sequences": 6, "temperature": 1.5}),
        ("beam", {"num_beams": 4}),
        ("diverse_beam", {"num_beams": 4, "num_beam_groups": 2}),
        ("stochastic_beam", {"num_beams": 4}),
        ("best_of_n", {"n": 5, "judge": "likelihood"}),
        ("best_first", {"expansions": 20, "num_return_sequences": 3}),
        ("mcts", {"score": "likelihood"}),
    ],
)
def test_every_search_goes_by_the_guided_law(name: str, options: dict[str, object]) -> None:
    """The reference under the exact value is searched as the optimal policy is."""
    mdp, solution = problem(horizon=4)
    guidance = ValueGuided(SoftValue(mdp, solution), 1 / BETA, None)
    search = METHODS[name].function
    plain = search(
        tabular_models(mdp.tree, policy=solution.log_policy, reference=mdp.ref_logps),
        [[0], [1]],
        max_new_tokens=4,
        **options,
    )
    guided = search(
        tabular_models(mdp.tree, policy=mdp.ref_logps, reference=mdp.ref_logps),
        [[0], [1]],
        max_new_tokens=4,
        guidance=guidance,
        **options,
    )
    for one, other in zip(guided, plain, strict=True):
        assert [each.token_ids for each in one] == [each.token_ids for each in other]
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine.logps, theirs.logps, atol=1e-6, rtol=0)


def test_a_value_of_log_ratios_brings_the_reference_of_a_pair() -> None:
    """Strength 1 and all tokens: `policy * policy / reference` of everything said so far."""
    pair = small_pair()
    (row,) = value_guided(pair, PROMPTS[:1], PrefixValue(1.0), 1.0, None, 4)
    ours, theirs = row[0].model_logps["policy"], row[0].model_logps["reference"]
    (tilted,) = proxy_tuning(pair, PROMPTS[:1], pair.policy, 1.0, 4)
    assert row[0].token_ids == tilted[0].token_ids
    torch.testing.assert_close(row[0].logps, tilted[0].logps, atol=1e-4, rtol=0)
    assert not torch.equal(ours, theirs)


def test_no_strength_is_the_base_where_the_pair_excludes_tokens() -> None:
    tree = PrefixTree(3, 2)
    table = np.log(np.full((tree.states, 3), 1 / 3))
    with np.errstate(divide="ignore"):
        narrow = np.log(np.tile([0.5, 0.5, 0.0], (tree.states, 1)))
    models = tabular_models(tree, policy=table, reference=narrow, base=table)
    (row,) = greedy(models, [[0]], 2, guidance=ProxyTuning(0.0))
    torch.testing.assert_close(row[0].logps, torch.full((2,), -float(np.log(3))))


def test_bad_input_is_one_line() -> None:
    pair = small_pair()
    with pytest.raises(UserError, match="strength is -1; accepted: 0 or more"):
        proxy_tuning(pair, PROMPTS, strength=-1)
    with pytest.raises(UserError, match="alpha is 2; accepted: 0 to 1"):
        alignment_aware(pair, PROMPTS, alpha=2)
    with pytest.raises(UserError, match="top_k is 0; accepted: 1 or more"):
        value_guided(pair, PROMPTS, len, top_k=0)
    with pytest.raises(UserError, match="search is 'beams'; accepted: greedy, sample, beam"):
        alignment_aware(pair, PROMPTS, search="beams")
    with pytest.raises(UserError, match="reads a model 'reference', but has policy"):
        alignment_aware({"policy": pair.policy}, [[5]])
    with pytest.raises(UserError, match="no reference"):
        alignment_aware(load_pair(pair.policy, tokenizer=pair.tokenizer), PROMPTS)
    with pytest.raises(UserError, match="a reward of texts needs a tokenizer"):
        reward_guided(pair.policy, [[5]], count_letters)
    with pytest.raises(UserError, match="value returned 1 numbers for 10 prefixes"):
        value_guided(pair, PROMPTS[:1], lambda prefixes: [0.0])
    for told in (None, 1.0, ["a"] * 10):
        with pytest.raises(UserError, match=r"value returned .*; accepted: a number for each"):
            value_guided(pair, PROMPTS[:1], lambda prefixes, told=told: told)
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match=f"value returned {wrong}; accepted: finite numbers"):
            value_guided(pair, PROMPTS[:1], lambda prefixes, wrong=wrong: [wrong] * len(prefixes))
        with pytest.raises(UserError, match=f"reward returned {wrong}; accepted: finite numbers"):
            reward_guided(pair, PROMPTS[:1], lambda asked, texts, wrong=wrong: [wrong] * len(texts))
    with pytest.raises(UserError, match="value is 5; accepted: a function of prefixes"):
        value_guided(pair, PROMPTS[:1], 5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reward is 5; accepted: a function of prompts and resp"):
        reward_guided(pair, PROMPTS[:1], 5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="strength is 'a'; accepted: 0 or more"):
        proxy_tuning(pair, PROMPTS, strength="a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reward returned 1 numbers for 5 prefixes"):
        reward_guided(pair, PROMPTS[:1], lambda prompts, responses: [0.0], top_k=5)


def test_rewards_are_named() -> None:
    assert RewardGuided(count_letters).models == ("policy",)

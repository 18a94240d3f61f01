"""`tokenq search`: better responses from a model by search; JSON lines, a page and a summary."""

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenq.cli.arguments import CommandParser, HelpFormatter, add_model_arguments, load_models
from tokenq.errors import UserError
from tokenq.report.progress import progress_bar
from tokenq.storage import check_writable, write_text

if TYPE_CHECKING:
    from tokenq.data.prompts import Prompts
    from tokenq.models.pair import Pair
    from tokenq.search.dataset import EncodedPrompt, SearchPlan, SearchRun
    from tokenq.search.methods import Kind, Method, Option

_METHOD = "beam"


def main(argv: list[str]) -> int:
    """Run the command."""
    from tokenq.search.methods import method

    argv = [_underscored(word) for word in argv]
    given = _chosen_method(argv)
    way = method(given.method or _METHOD)
    if given.search is not None:
        way = way.searching(given.search)
    asked = given.method is not None
    if {"-h", "--help"} & set(argv):
        _help_parser(way, asked=asked).print_help()
        return 0
    arguments = _arguments(way, argv)
    _check(arguments)
    options = _options(way, arguments)
    prompts = _prompts(arguments)
    encoded = _encoded(way, options, prompts, arguments)
    _search(way, options, prompts, encoded, arguments)
    return 0


def _chosen_method(argv: Sequence[str]) -> argparse.Namespace:
    """The method, and the search that it guides: they decide what other options there are."""
    parser = CommandParser("search", "")
    parser.add_argument("--method")
    parser.add_argument("--search")
    return parser.parse_known_args([each for each in argv if each not in ("-h", "--help")])[0]


def _underscored(word: str) -> str:
    """An option in the spelling that it is known by: --num-beams is --num_beams."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word[:2] == "--" else word


def _common_parser() -> CommandParser:
    parser = CommandParser(
        "search",
        "Find better responses to prompts with the model that there is, by what its training "
        "taught it: beams, samples, trees and guided decoding, every token computed once.",
    )
    parser.usage = (
        "tokenq search --policy POLICY (--prompts SOURCE --out DIR | --prompt TEXT) [options]"
    )
    add_model_arguments(parser)
    data = parser.add_argument_group("prompts")
    data.add_argument(
        "--prompts",
        "--data",
        dest="prompts",
        metavar="SOURCE",
        help=".jsonl, .json, .csv, .parquet, a folder, a hub name, bundled:NAME; rows with a "
        "prompt (text or messages), or preference rows; other columns are carried along",
    )
    data.add_argument("--prompt", metavar="TEXT", help="or a single prompt")
    data.add_argument(
        "--chat", action="store_true", help="text prompts go through the chat template"
    )
    data.add_argument("--split", default="test", help="split of a folder, hub or bundled set")
    data.add_argument("--config", help="configuration of a hub data set")
    data.add_argument("--limit", type=int, help="at most so many rows")
    data.add_argument(
        "--skip_bad_rows",
        action="store_true",
        help="leave out rows that are malformed (see OUT/rejects.jsonl) or too long",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=Path, help="folder for search.jsonl, index.html, summary.json"
    )
    results.add_argument(
        "--trace",
        action="store_true",
        help="keep the tree that was searched: on the page, and as OUT/trace_ROW.png",
    )
    results.add_argument(
        "--stream", action="store_true", help="show the best so far of a single prompt"
    )
    results.add_argument("--show", type=int, default=3, help="prompts shown in the terminal")
    results.add_argument("--page_rows", type=int, default=500, help="most prompts on the page")
    results.add_argument(
        "--beta", type=float, default=0.1, help="of the implicit rewards that are shown"
    )
    return parser


def _help_parser(way: "Method", *, asked: bool) -> argparse.ArgumentParser:
    """All options of one method if it was `asked` for, else a line of each method as well."""
    from tokenq.search.methods import METHODS

    parser = _common_parser()
    methods = parser.add_argument_group(
        "method" if asked else "methods (tokenq search --method NAME --help says all of one)"
    )
    methods.add_argument(
        "--method", default=_METHOD, metavar="NAME", help="one of " + ", ".join(METHODS)
    )
    if asked:
        _add_options(parser, way)
        return parser
    for each in METHODS.values():
        own = [option for option in each.options.values() if not _is_shared(option)]
        group = parser.add_argument_group(f"  {each.name}: {each.about}")
        group.description = "  ".join(_brief(option) for option in own) or "(no options)"
    _add_shared(parser, way)
    parser.formatter_class = HelpFormatter
    return parser


def _brief(option: "Option") -> str:
    if option.required:
        return f"--{option.name} (needed)"
    if option.default is None:
        return f"--{option.name}"
    return f"--{option.name} {_shown(option.default)}"


def _arguments(way: "Method", argv: Sequence[str]) -> argparse.Namespace:
    parser = _common_parser()
    parser.add_argument("--method", default=_METHOD)
    _add_options(parser, way)
    arguments, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise UserError(_unknown(way, unknown[0]))
    return arguments


def _unknown(way: "Method", word: str) -> str:
    """What to say of a word that this method does not know."""
    from difflib import get_close_matches

    from tokenq.search.methods import methods_with

    if not word.startswith("--"):
        return f"unknown argument {word!r}; tokenq search --help lists the options"
    name = word[2:].partition("=")[0]
    others = methods_with(name)
    own = [f"--{each}" for each, option in way.options.items() if not _is_shared(option)]
    mine = ", ".join(own) or "--max_new_tokens and others that every method has"
    if others:
        return f"--{name} belongs to {', '.join(others)}, not to {way.name}; accepted: {mine}"
    near = get_close_matches(name, way.options, n=1, cutoff=0.6)
    hint = f"did you mean --{near[0]}?" if near else f"{way.name} has {mine}"
    return f"unknown option --{name}; {hint}"


def _add_options(parser: argparse.ArgumentParser, way: "Method") -> None:
    own = parser.add_argument_group(f"method {way.name}: {way.about}")
    for option in way.options.values():
        if not _is_shared(option):
            _add_option(own, option)
    _add_shared(parser, way)


def _add_shared(parser: argparse.ArgumentParser, way: "Method") -> None:
    shared = parser.add_argument_group("every method")
    for option in way.options.values():
        if _is_shared(option):
            _add_option(shared, option)


def _add_option(group: argparse._ArgumentGroup, option: "Option") -> None:
    told = [option.about] if option.about else []
    if not option.required and option.default not in (None, (), ""):
        told.append(f"(default: {_shown(option.default)})")
    group.add_argument(
        f"--{option.name}",
        # A value is read later, so that errors are those of the Python interface.
        default=argparse.SUPPRESS,
        nargs="+" if option.many else None,
        metavar=_metavar(option),
        help=" ".join(told).replace("%", "%%"),
    )


def _metavar(option: "Option") -> str:
    if option.opened is not None:
        return {"judge": "JUDGE", "model": "MODEL", "function": "MODULE:FUNCTION"}[option.opened]
    if set(option.kinds) <= {int, float}:
        return "N" if option.kinds == (int,) else "X"
    named = [kind for kind in option.kinds if kind not in (int, float, str, bool)]
    if bool in option.kinds:
        named = ["true", "false", *named]
    return "{" + ",".join(map(str, named)) + "}" if named else "TEXT"


def _is_shared(option: "Option") -> bool:
    from tokenq.search.methods import SHARED

    return option.name in SHARED


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for arguments that do not go together, before anything is read."""
    if (arguments.prompts is None) == (arguments.prompt is None):
        raise UserError(
            "nothing to answer; accepted: --prompts with rows, or --prompt with one text"
            if arguments.prompt is None
            else "--prompt and --prompts are both given; accepted: one of them"
        )
    if arguments.prompts is not None and arguments.out is None:
        raise UserError("--prompts needs --out, a folder for the results")
    if arguments.trace and arguments.out is None:
        raise UserError("--trace needs --out, a folder for the pictures")
    if arguments.stream and arguments.prompt is None:
        raise UserError("--stream shows one response as it grows; accepted: with --prompt")
    for name in ("page_rows", "show"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; accepted: 0 or more")
    if not arguments.beta > 0:
        raise UserError(f"--beta is {arguments.beta}; accepted: a number above 0")
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out: {arguments.out} is a file; accepted: a folder")


def _options(way: "Method", arguments: argparse.Namespace) -> dict[str, Any]:
    """The method's options that were given, as it takes them; objects still as text."""
    found: dict[str, Any] = {}
    for name, option in way.options.items():
        if not hasattr(arguments, name):
            if option.required:
                raise UserError(f"method {way.name} needs --{name}; accepted: {option.accepted}")
            continue
        text = getattr(arguments, name)
        found[name] = [option.read(each) for each in text] if option.many else option.read(text)
    return found


def _prompts(arguments: argparse.Namespace) -> "Prompts":
    from tokenq.data.prompts import load_prompts, one_prompt

    if arguments.prompt is not None:
        if not arguments.prompt:
            raise UserError("--prompt is empty; accepted: a text")
        return one_prompt(arguments.prompt, chat=arguments.chat)
    rejects = arguments.out / "rejects.jsonl" if arguments.skip_bad_rows else None
    return load_prompts(
        arguments.prompts,
        chat=arguments.chat,
        split=arguments.split,
        config=arguments.config,
        limit=arguments.limit,
        rejects=rejects,
    )


def _encoded(
    way: "Method", options: dict[str, Any], prompts: "Prompts", arguments: argparse.Namespace
) -> "list[EncodedPrompt]":
    """Token ids of the prompts, with every check that small files allow."""
    from tokenq.models.checkpoint import inspect
    from tokenq.models.loading import load_tokenizer
    from tokenq.models.vocabulary import check_same_vocabulary
    from tokenq.search.dataset import encode_prompts

    policy = inspect(arguments.policy)
    reference = policy.base if arguments.reference is None else inspect(arguments.reference)
    named = [
        inspect(options[name])
        for name, kind in way.opened.items()
        if kind == "model" and name in options
    ]
    configs = [
        each.config.get_text_config() for each in (policy, reference, *named) if each is not None
    ]
    tokenizer = load_tokenizer(policy)
    for each in named:
        check_same_vocabulary(tokenizer, load_tokenizer(each), policy.name, each.name)
    way.check(configs[0].vocab_size, options, reference=reference is not None, tokenizer=tokenizer)
    limits = [getattr(each, "max_position_embeddings", None) for each in configs]
    return encode_prompts(
        tokenizer,
        prompts,
        context=min((limit for limit in limits if limit), default=None),
        max_new_tokens=options.get("max_new_tokens", way.default("max_new_tokens")),
        skip=arguments.skip_bad_rows,
    )


def _search(
    way: "Method",
    options: dict[str, Any],
    prompts: "Prompts",
    encoded: "list[EncodedPrompt]",
    arguments: argparse.Namespace,
) -> None:
    from tokenq.search.dataset import SearchPlan

    if arguments.out is not None:
        check_writable(arguments.out, "--out")
    console = Console(highlight=False)
    found = _opened(way, options, arguments, console)
    opened = {name: each for name, (each, _) in found.items()}
    # Of what is only named here, other weights under the same name are another search.
    known = {f"{name}_identity": identity for name, (_, identity) in found.items()}
    pair = load_models(arguments, console)
    plan = SearchPlan(
        method=way,
        options={name: value for name, value in options.items() if name not in opened},
        opened=opened,
        named={**{name: options[name] for name in opened}, **known},
        beta=arguments.beta,
        trace=arguments.trace,
    )
    if arguments.out is None:
        _one(pair, encoded[0], plan, arguments, console)
    else:
        run = _run(pair, prompts, encoded, plan, arguments, console)
        _write(run, prompts, arguments)
        _show(run, arguments, console)


def _opened(
    way: "Method", options: dict[str, Any], arguments: argparse.Namespace, console: Console
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The arguments that are objects, opened by name, and what tells them from others of that name.

    Raises UserError for names that are none.
    """
    ready = {
        name: _ready(way.opened[name], value, arguments)
        for name, value in options.items()
        if name in way.opened and not way.options[name].is_value(value)
    }
    with console.status("Loading models"):
        return {name: load() for name, load in ready.items()}


def _ready(
    kind: "Kind", text: str, arguments: argparse.Namespace
) -> "Callable[[], tuple[Any, dict[str, Any]]]":
    """Check what a text names, as far as that needs no weights; what is returned loads it."""
    if kind == "model":
        return lambda: _model(text, arguments)
    from tokenq.judges.specs import Resources, parse_judge

    resources = Resources(device=arguments.device, dtype=arguments.dtype)
    try:
        judge = parse_judge(text if kind == "judge" else f"python:{text}")
    except UserError as error:
        if kind == "judge":
            raise
        raise UserError(
            f"function {text!r}: {str(error).partition(': ')[2].replace('python:', '')}"
        ) from error
    if judge.column is not None:
        raise UserError(
            f"judge '{text}' needs the right answers of rows, which a search does not show it; "
            "accepted: one that reads prompt and response"
        )

    def load() -> tuple[Any, dict[str, Any]]:
        opened = judge.open(resources)
        if not callable(opened.judge):
            raise UserError(
                f"judge '{text}' compares two responses; accepted: one that scores each, such as "
                "reward:MODEL, implicit:POLICY, lexicon or python:MODULE:FUNCTION"
            )
        return opened.judge, opened.identity

    return load


def _model(name: str, arguments: argparse.Namespace) -> tuple["Pair", dict[str, Any]]:
    from tokenq.models.fingerprint import weight_hash
    from tokenq.models.pair import load_pair

    pair = load_pair(name, device=arguments.device, dtype=arguments.dtype)
    return pair, {"weights": weight_hash(pair.policy)}


def _one(
    pair: "Pair",
    prompt: "EncodedPrompt",
    plan: "SearchPlan",
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    """Search a single prompt for the terminal alone."""
    from tokenq.report.search_terminal import show_found, streamed
    from tokenq.search.dataset import response_record

    with streamed(console, shown=arguments.stream) as on_step:
        results = plan.method.function(
            pair, [prompt.token_ids], **plan.options, **plan.opened, on_step=on_step
        )
    if not results[0]:
        raise UserError("nothing was found: the options forbid every token")
    responses = [response_record(pair, each, plan.beta) for each in results[0]]
    record = {"row": 0, "prompt": prompt.source.prompt, "responses": responses}
    show_found(console, record, plan.beta)


def _run(
    pair: "Pair",
    prompts: "Prompts",
    encoded: "list[EncodedPrompt]",
    plan: "SearchPlan",
    arguments: argparse.Namespace,
    console: Console,
) -> "SearchRun":
    from tokenq.report.search_terminal import streamed
    from tokenq.search.dataset import search_dataset

    with (
        progress_bar("Searching", console) as progress,
        streamed(progress.console, shown=arguments.stream) as on_step,
    ):
        task = progress.add_task("", total=len(encoded), visible=not arguments.stream)
        return search_dataset(
            pair,
            encoded,
            arguments.out,
            plan,
            fingerprint=prompts.fingerprint,
            on_progress=lambda count: progress.advance(task, count),
            on_step=on_step,
        )


def _write(run: "SearchRun", prompts: "Prompts", arguments: argparse.Namespace) -> None:
    from tokenq import __version__
    from tokenq.report.search_page import SearchHead, write_search_page
    from tokenq.report.search_tree import draw_tree

    source = {"data": prompts.source, "tokenq": __version__, "rejected": prompts.rejected}
    report = {**run.settings, **source, **run.summary.to_dict()}
    write_text(
        arguments.out / "summary.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    )
    head = SearchHead(report, beta=arguments.beta, page_rows=arguments.page_rows)
    write_search_page(arguments.out / "index.html", run.records(), head, trace_of=run.trace)
    if arguments.trace:
        for record in islice(run.records(), arguments.page_rows):
            trace = run.trace(record["row"])
            path = arguments.out / f"trace_{record['row']}.png"
            if trace is not None and not path.exists():
                asked = record["prompt"]
                title = asked if isinstance(asked, str) else str(asked[-1]["content"])
                draw_tree(trace["nodes"], path, title=title)


def _show(run: "SearchRun", arguments: argparse.Namespace, console: Console) -> None:
    from tokenq.report.search_terminal import show_found, show_summary

    for record in islice(run.records(), arguments.show):
        show_found(console, record, arguments.beta)
    show_summary(console, run.summary.to_dict())
    console.print(f"page: {arguments.out / 'index.html'}", markup=False, soft_wrap=True)

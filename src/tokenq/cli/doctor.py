"""`tokenq doctor`: shows the facts of `tokenq.environment`, as tables or as JSON."""

import dataclasses
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenq.cli.arguments import CommandParser

if TYPE_CHECKING:
    from tokenq.environment import Cache, Device, Environment, Feature, Processor

MIB = 2**20
GIB = 2**30


def main(argv: list[str]) -> int:
    """Print what is installed and what works; the exit code is 0 whatever is missing."""
    parser = CommandParser(
        "doctor", "What is installed, which devices there are, which features are on."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")
    arguments = parser.parse_args(argv)

    from tokenq.environment import inspect_environment

    environment = inspect_environment()
    if arguments.json:
        print(json.dumps(dataclasses.asdict(environment), indent=2))
    else:
        show(environment, Console(highlight=False))
    return 0


def show(environment: "Environment", console: Console) -> None:
    """Print one table a subject."""
    for table in (
        versions_table(environment),
        devices_table(environment.devices, environment.processor),
        features_table(environment.features),
        cache_table(environment.cache),
        variables_table(environment.variables),
    ):
        console.print(table)
        console.print()


def versions_table(environment: "Environment") -> Table:
    """Python and the packages that results depend on."""
    table = _table("Versions")
    table.add_row("python", f"{environment.python}, {environment.platform}")
    for package, version in environment.versions.items():
        table.add_row(package, version or "[dim]not installed[/dim]")
    return table


def devices_table(devices: "list[Device]", processor: "Processor") -> Table:
    """Where to compute, and with how much memory."""
    table = _table("Devices")
    for device in devices:
        parts = [escape(device.description)]
        if device.memory_total is not None and device.memory_free is not None:
            free, total = device.memory_free / GIB, device.memory_total / GIB
            parts.append(f"{free:.1f} of {total:.1f} GiB memory free")
        if device.bf16 is not None:
            parts.append("bf16" if device.bf16 else "no bf16")
        table.add_row(device.name, ", ".join(parts))
    cores = f"{processor.cores_physical} physical, {processor.cores_logical} logical"
    table.add_row("cores", f"{cores}, {processor.cores_usable} usable by this process")
    table.add_row("threads", f"{processor.torch_threads} (OMP_NUM_THREADS sets them)")
    return table


def features_table(features: "list[Feature]") -> Table:
    """Optional parts: on or off, and how to turn them on."""
    table = _table("Features")
    for feature in features:
        state = "[green]on[/green]" if feature.on else "[yellow]off[/yellow]"
        table.add_row(feature.name, state, escape(feature.detail))
    return table


def cache_table(cache: "Cache") -> Table:
    """The cache folder and the models and data sets in it."""
    table = _table("Cache")
    table.add_row("folder", escape(cache.path))
    if cache.problem is not None:
        table.add_row("problem", f"[red]{escape(cache.problem)}[/red]")
        return table
    table.add_row("free disk", f"{cache.free / GIB:.1f} GiB")
    for entry in cache.contents:
        table.add_row(escape(entry.path), f"{entry.size / MIB:,.1f} MiB")
    if not cache.contents:
        table.add_row("contents", "[dim]empty: bundled models and data come at first use[/dim]")
    return table


def variables_table(variables: "dict[str, str | None]") -> Table:
    """Variables that change where things are looked for, and whether the network is."""
    table = _table("Environment variables")
    for name, value in variables.items():
        table.add_row(name, "[dim]not set[/dim]" if value is None else escape(value))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    return table

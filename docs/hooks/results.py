"""Puts the pages of `results/`, with their figures and numbers, into the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = (".md", ".png", ".json")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies in every folder of results, under the same name; not the runs' own files."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / "results").glob("*/*")):
        if path.suffix in SHOWN:
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files

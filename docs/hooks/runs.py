"""The monitor's page of a run of `tokenq reproduce decline`, from the parts that the run has left.

python docs/hooks/runs.py results/decline/runs debian-sft-chosen-0 /tmp/report.html
python docs/hooks/screenshot.py /tmp/report.html docs/assets/monitor-report.png --height 1000
"""

import argparse
import json
from pathlib import Path

from tokenq.models.loading import load_tokenizer
from tokenq.monitor.readings import History, Reading, Setup
from tokenq.report.monitor_page import write_monitor_page


def main() -> None:
    """Write one page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path, help="folder of the parts")
    parser.add_argument("run", help="such as debian-sft-chosen-0")
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    parts = {
        path.stem.removeprefix(f"{arguments.run}-"): json.loads(path.read_text("utf-8"))["result"]
        for path in arguments.parts.glob(f"{arguments.run}-*.json")
    }
    setup = Setup.from_dict(parts.pop("setup"))
    readings = [Reading.from_dict(parts[step]) for step in sorted(parts, key=int)]
    tokenizer = load_tokenizer("bundled:smollm2-135m-instruct")
    write_monitor_page(arguments.page, History(setup, readings, []), tokenizer=tokenizer)


if __name__ == "__main__":
    main()

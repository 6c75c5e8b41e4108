"""The report: every figure, the papers' numbers, ours, and the verdicts, in one HTML file.

    python -m experiments.report [--out FILE.html] [--figures FOLDER] [--readme]

Reads `experiments/results` and nothing else, draws every figure anew and puts all into one file
that needs no other. `--figures docs/papers` also writes the figures there, `--readme` the table of
`experiments/README.md`.
"""

import argparse
import base64
import collections
import html
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ._rows import RESULTS, chosen

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; margin: 1em 0; }
th, td { text-align: left; vertical-align: top; padding: .35em .6em; border-top: 1px solid #ddd; }
td.number { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } .why { color: #555; font-size: 13px; } code { font-size: 13px; }
.beyond { color: #00664a; font-weight: 600; } .reached { color: #00664a; }
.explained { color: #8a5a00; } .short { color: #b02a00; font-weight: 600; }
"""


def main(arguments: list[str] | None = None) -> int:
    """Write the report; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report")
    parser.add_argument("--out", type=Path, default=Path("runs/papers/report.html"))
    parser.add_argument("--figures", type=Path, help="folder for the figures alone")
    parser.add_argument("--readme", action="store_true", help="write the table of README.md anew")
    options = parser.parse_args(arguments)
    found = chosen()
    if not found:
        print(f"There are no results in {RESULTS}; run an experiment first.", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.figures or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sections = [
            _section(name, json.loads(path.read_text()), folder) for name, path in found.items()
        ]
    rows = [row for path in found.values() for row in json.loads(path.read_text())["rows"]]
    if options.readme:
        _write_table(found)
    options.out.write_text(_page(rows, sections))
    print(options.out)
    return 0


def _section(name: str, record: dict[str, Any], folder: Path) -> str:
    """One experiment: what it says of itself, its figure and its rows."""
    module = importlib.import_module(f"experiments.{name}")
    picture = folder / f"{name}.png"
    module.EXPERIMENT.draw(record["found"], picture)
    title, _, rest = (module.__doc__ or name).strip().partition("\n\n")
    encoded = base64.b64encode(picture.read_bytes()).decode()
    settings = ", ".join(f"{key} {value}" for key, value in record["config"].items())
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    return (
        f'<h2 id="{name}">{html.escape(title.rstrip("."))}</h2>'
        f"<p>{html.escape(rest)}</p>"
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}">'
        f"{_table(record['rows'])}"
        f'<p class="why"><code>{html.escape(record["rows"][0]["command"])}</code>, '
        f"{record['seconds'] / 60:.1f} min. Settings: {html.escape(settings)}. "
        f"{html.escape(versions)}; commit {record['commit']}.</p>"
    )


def _write_table(found: dict[str, Path]) -> None:
    """Claim, command, minutes, the paper's number and ours, between the marks in README.md."""
    lines = [
        "| figure | claim | command | minutes | published | ours | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    number = lambda value: "" if value is None else f"{value:.3g}"
    for path in found.values():
        record = json.loads(path.read_text())
        for row in record["rows"]:
            command = row["command"].removeprefix("python -m ")
            lines.append(
                f"| {row['paper']} {row['figure']} | {row['claim']}: {row['metric']} | `{command}` "
                f"| {record['seconds'] / 60:.0f} | {number(row['published'])} "
                f"| {number(row['ours'])} | {row['verdict']} |"
            )
    readme = Path(__file__).with_name("README.md")
    before, _, rest = readme.read_text().partition("<!-- table -->\n")
    after = rest.partition("<!-- end -->\n")[2]
    table = "\n".join(lines)
    readme.write_text(f"{before}<!-- table -->\n{table}\n<!-- end -->\n{after}")


def _table(rows: list[dict[str, Any]]) -> str:
    number = lambda value: "" if value is None else f"{value:.3g}"
    lines = [
        "<table><tr><th>figure</th><th>claim</th><th>metric</th><th>published</th><th>ours</th>"
        "<th>seeds</th><th>verdict</th></tr>"
    ]
    for row in rows:
        why = f'<div class="why">{html.escape(row["why"])}</div>' if row["why"] else ""
        lines.append(
            f"<tr><td>{row['paper']} {row['figure']}</td><td>{html.escape(row['claim'])}{why}</td>"
            f"<td>{html.escape(row['metric'])}</td><td class=number>{number(row['published'])}</td>"
            f"<td class=number>{number(row['ours'])}</td><td class=number>{row['seeds']}</td>"
            f'<td class="{row["verdict"]}">{row["verdict"]}</td></tr>'
        )
    return "".join(lines) + "</table>"


def _page(rows: list[dict[str, Any]], sections: list[str]) -> str:
    count = collections.Counter(row["verdict"] for row in rows)
    sizes = collections.Counter(row["size"] for row in rows)
    told = ", ".join(
        f"{count[name]} {name}" for name in ("beyond", "reached", "explained", "short")
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>The papers, reproduced</title>"
        f"<style>{_STYLE}</style><h1>DiffMPC, DiLQR and DCEM, reproduced</h1>"
        f"<p>{len(rows)} rows: {told}. {sizes['full']} are of the papers' size, "
        f"{sizes['reduced']} of fewer seeds or epochs. A number is what was run, over all the "
        "seeds that were run.</p>" + "".join(sections) + "</html>\n"
    )


if __name__ == "__main__":
    sys.exit(main())

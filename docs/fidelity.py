"""Put the figures of fidelity reports into docs/testbed.md: ``python docs/fidelity.py FOLDER...``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from wdmoe_env.testbed.fidelity import fidelity_rows

PAGE = Path(__file__).parent / "testbed.md"
BEGIN, END = "<!-- fidelity -->", "<!-- /fidelity -->"


def section(folder: Path) -> str:
    """The Markdown of one report."""
    report = json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))
    order, links, last = report["order"], report["links"], report["difference_ms"]["last_device"]
    same = "the same" if order["measured"] == order["simulated"] else "not the same"
    rates = "; ".join(
        f"{name} rates are off by {link['p50_percent']:.2f} % (p50) and {link['p99_percent']:.2f} % (p99)"
        for name, link in links.items()
        if link["payloads"]
    )
    parts = ", ".join(f"{name.replace('_', ' ')} {part['median']:.2f}" for name, part in last.items())
    setting = f"{report['bandwidth_hz'] / 1e6:g} MHz, time scale {report['time_scale']:g}"
    if report.get("shaped_by") == "kernel":
        setting += ", links shaped by the kernel"
    command = re.sub(r"--out \S+", f"--out runs/fidelity/{folder.name}", report["command"])
    lines = [
        f"{setting}, {report['episodes']} episodes, on {report['machine']}:",
        "",
        f"    {command}",
        "",
        *fidelity_rows(report),
        "",
        f"`overhead_ms` = {report['overhead_ms']:.2f}. The order of the policies is {same} both ways",
        f"(rank correlation {order['rank_correlation']:.2f}); {rates}.",
        f"A block took longer by, in wall-clock ms (median): {parts}.",
        f"An empty call took {report['floor_ms']['empty_call_p50']:.2f} ms{_block(report)}.",
    ]
    return "\n".join(lines)


def _block(report: dict[str, Any]) -> str:
    """What a block of empty calls took, in words, where it was measured."""
    floor = report["floor_ms"].get("empty_block_p50")
    return "" if floor is None else f", a block of empty calls to all devices {floor:.2f} ms"


def main(folders: list[str]) -> None:
    """Rewrite the place between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n\n".join(section(Path(folder)) for folder in folders)
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

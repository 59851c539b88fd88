"""Draw the README's pictures: docs/images/terminal.svg from a recorded session, docs/images/speed.svg from the numbers of docs/benchmarks.md.

    python docs/pictures.py            draw them        (tests/test_docs.py checks that they are current)

The session in docs/images/terminal.txt is what a terminal of 80 columns showed. Lines that begin with "$ " or "> " were typed, those with "[" came on stderr.
"""
from __future__ import annotations

import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
CELL, LINE, PAD = 8.4, 20, 18  # a character at 14 pixels, a line, the border
ROWS = ("1.1B Q4_0, prompt of 512", "1.1B Q4_0, generation", "1.1B Q4_0, 8 sequences at once", "1.1B Q4_K_M, prompt of 512", "1.1B Q4_K_M, generation",
        "1.1B Q8_0, prompt of 512", "1.1B Q8_0, generation", "7B Q4_0, prompt of 128", "7B Q4_0, generation")
"""Of the table "At a glance" in docs/benchmarks.md."""
OURS, THEIRS = "#2563a8", "#b9bec7"


def terminal(session: str) -> str:
    """A recorded session as SVG."""
    lines = session.rstrip("\n").split("\n")
    width, height = round(80 * CELL + 2 * PAD), len(lines) * LINE + 2 * PAD + 22
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
           'aria-label="A terminal in which llamina answers">',
           f'<rect width="{width}" height="{height}" rx="8" fill="#1b1f27"/>']
    out += [f'<circle cx="{PAD + 18 * i}" cy="18" r="5.5" fill="{color}"/>' for i, color in enumerate(("#e0605a", "#e0b04c", "#63b35c"))]
    out.append(f'<g font-family="{FONT}" font-size="14" xml:space="preserve">')
    for i, line in enumerate(lines):
        if line:
            color = "#ffffff" if line.startswith(("$ ", "> ")) else "#8892a3" if line.startswith(("[", "llamina:")) else "#d6dae2"
            weight = ' font-weight="600"' if line.startswith(("$ ", "> ")) else ""
            out.append(f'<text x="{PAD}" y="{PAD + 22 + LINE * i + 14}" fill="{color}"{weight} textLength="{len(line) * CELL:.1f}" '
                       f'lengthAdjust="spacingAndGlyphs">{escape(line)}</text>')
    return "\n".join([*out, "</g>", "</svg>"]) + "\n"


def table(page: str) -> dict[str, tuple[float, float]]:
    """Row -> (ours, llama.cpp's) tokens a second of the second machine (Zen 5) in docs/benchmarks.md."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if len(cells) == 7 and cells[0] in ROWS and re.fullmatch(r"[\d.]+", cells[4]):
            found[cells[0]] = float(cells[4]), float(cells[5])
    return found


def speed(rows: dict[str, tuple[float, float]]) -> str:
    """A bar chart: each pair to its own scale, since a prompt's tokens and an answer's differ by ten."""
    left, bar, width, step = 232, 330, 700, 44
    height = 66 + step * len(rows)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
           'aria-label="Tokens a second: llamina beside llama.cpp">', f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
           f'<g font-family="{SANS}" font-size="13" fill="#20242c">',
           f'<rect x="{left}" y="20" width="12" height="12" fill="{OURS}"/><text x="{left + 18}" y="31">llamina</text>',
           f'<rect x="{left + 90}" y="20" width="12" height="12" fill="{THEIRS}"/><text x="{left + 108}" y="31">llama.cpp</text>',
           f'<text x="{width - 20}" y="31" text-anchor="end" fill="#626a78">tokens a second, two cores</text>']
    for i, (name, (ours, theirs)) in enumerate(rows.items()):
        y, most = 52 + step * i, max(ours, theirs)
        out.append(f'<text x="{left - 12}" y="{y + 20}" text-anchor="end">{escape(name)}</text>')
        for dy, value, color in (0, ours, OURS), (15, theirs, THEIRS):
            out.append(f'<rect x="{left}" y="{y + dy}" width="{bar * value / most:.1f}" height="13" fill="{color}"/>'
                       f'<text x="{left + bar * value / most + 6:.1f}" y="{y + dy + 11}" font-size="12">{value:g}</text>')
        out.append(f'<text x="{width - 20}" y="{y + 20}" text-anchor="end" font-weight="600">{ours / theirs:.1f} ×</text>')
    return "\n".join([*out, "</g>", "</svg>"]) + "\n"


def pictures() -> dict[Path, str]:
    """File -> what it should hold."""
    rows = table((DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    missing = [name for name in ROWS if name not in rows]
    if missing:
        raise SystemExit(f"docs/benchmarks.md: the table has no row {missing[0]!r}")
    return {IMAGES / "terminal.svg": terminal((IMAGES / "terminal.txt").read_text(encoding="utf-8")), IMAGES / "speed.svg": speed({n: rows[n] for n in ROWS})}


if __name__ == "__main__":
    for path, text in pictures().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.name)

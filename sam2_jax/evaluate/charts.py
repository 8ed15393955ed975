"""Line charts as SVG, readable on light and dark backgrounds, as files or as parts of a page.

{name: (x, y)}  ->  line_chart: SVG
"""

import html
from collections.abc import Mapping, Sequence

COLORS = ("#3b82f6", "#e0793b", "#2f9e6e", "#b565c9", "#d1495b", "#8a8f3c", "#5b8c9e", "#a0764f")
_WIDTH, _HEIGHT = 640, 260  # of the picture
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 26, 44  # around the plot
_ROW = 18  # height of a line of the legend
_COLUMNS = 3  # of the legend

Points = tuple[Sequence[float], Sequence[float]]


def line_chart(lines: Mapping[str, Points], x_label: str, y_label: str, y_max: float = 100) -> str:
    """Draws lines into one chart.

    Args:
        lines: x and y of the points of each line by its name, which the legend shows; x ascending.
        x_label: what x is.
        y_label: what y is, from 0 to `y_max`.
        y_max: top of the y axis.

    Returns:
        The text of an SVG, as wide as what it is put in.
    """
    every_x = [x for xs, _ in lines.values() for x in xs] or [0.0]
    low, high = min(every_x), max(every_x)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    to_x = lambda x: _LEFT + (x - low) / ((high - low) or 1) * (right - _LEFT)
    to_y = lambda y: bottom - min(max(y / y_max, 0), 1) * (bottom - _TOP)
    parts = []
    for tick in range(0, 101, 25):
        y = to_y(tick / 100 * y_max)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick / 100 * y_max:g}", "end"))
    for x, anchor in {low: "middle", high: "end"}.items():
        parts.append(_text(to_x(x), bottom + 16, f"{x:g}", anchor))
    parts.append(_text((_LEFT + right) / 2, bottom + 16, x_label, "middle"))
    parts.append(_text(_LEFT, _TOP - 10, y_label, "start"))
    for n, (name, (xs, ys)) in enumerate(lines.items()):
        color = COLORS[n % len(COLORS)]
        places = [f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        parts.append(f'<polyline stroke="{color}" points="{" ".join(places)}"/>')
        if len(places) <= 20:
            parts += [
                f'<circle r="3" fill="{color}" cx="{place.split(",")[0]}" cy="{place.split(",")[1]}"/>'
                for place in places
            ]
        x = _LEFT + (n % _COLUMNS) * (right - _LEFT) / _COLUMNS
        y = bottom + 38 + _ROW * (n // _COLUMNS)
        parts.append(f'<path stroke="{color}" d="M{x:.1f} {y - 4:.1f}h16"/>')
        parts.append(_text(x + 20, y, name, "start"))
    height = _HEIGHT + _ROW * (-(-len(lines) // _COLUMNS) - 1)
    style = (
        "text{font:12px system-ui,sans-serif;fill:#777}polyline,path{fill:none;stroke-width:2}"
        ".grid{stroke:#8884;stroke-width:1}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'

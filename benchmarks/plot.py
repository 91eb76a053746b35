"""A chart of each ratio relative to its target."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from benchmarks.report import lines_of, ratio_of

if TYPE_CHECKING:
    from benchmarks.measure import Row

_LEFT, _WIDTH, _RIGHT, _STEP, _TOP = 520, 320, 150, 26, 36  # pixels
_MOST = 1.6  # times the target; larger ratios are drawn at the edge
_MET, _MISSED = "#2a9d8f", "#d1495b"
_LOOK = (
    'role="img" aria-label="Measured ratios, relative to their targets" '
    'font-family="sans-serif" font-size="13" fill="currentColor" '
    'style="max-width: 100%; height: auto"'
)
_BAR = 'stroke-width="12" opacity="0.6"'


def svg(rows: list[Row]) -> str:
    """Return a chart with one bar per target: the median ratio and its quartiles."""
    shown = list(lines_of(rows))
    bottom = _TOP + _STEP * len(shown)
    at_target = _LEFT + _WIDTH / _MOST
    width, height = _LEFT + _WIDTH + _RIGHT, bottom + 16
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_LOOK}>',
        f'<text x="{at_target:.0f}" y="16" text-anchor="middle">target</text>',
        f'<path d="M{_LEFT} {_TOP - 12}V{bottom}" stroke="currentColor" opacity="0.3"/>',
        f'<path d="M{at_target:.1f} {_TOP - 12}V{bottom}" stroke="currentColor"/>',
    ]
    for number, (text, ratio, target) in enumerate(shown):
        y = _TOP + _STEP * number + 8
        low, median, high = (
            _LEFT + min(value / target.most, _MOST) / _MOST * _WIDTH for value in ratio
        )
        color = _MET if ratio.median <= target.most else _MISSED
        parts += [
            f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(text)}</text>',
            f'<g stroke="{color}"><path d="M{_LEFT} {y}H{median:.1f}" {_BAR}/>',
            f'<path d="M{low:.1f} {y}H{max(high, low + 1):.1f}" stroke-width="4"/></g>',
            f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 4}">{ratio_of(ratio)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])

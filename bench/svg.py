"""Plots with logarithmic axes, as SVG."""

import math
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 70, 140, 40, 50
COLORS = ["#1b6ca8", "#c2452d", "#3a8f4d", "#8a5ba6", "#b58900", "#555555"]


class Axis:
    def __init__(self, values, start, end):
        positive = [value for value in values if value > 0]
        self.low = math.floor(math.log10(min(positive)))
        self.high = max(math.ceil(math.log10(max(positive))), self.low + 1)
        self.start, self.end = start, end

    def at(self, value):
        part = (math.log10(max(value, 10**self.low)) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self):
        return [10**power for power in range(self.low, self.high + 1)]


def text(x, y, words, anchor="middle", color="black"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'


def plot(title, x_name, y_name, lines):
    """`lines`: points (x, y) by the name of the line."""
    points = [point for line in lines.values() for point in line]
    x = Axis([at for at, _ in points], LEFT, WIDTH - RIGHT)
    y = Axis([at for _, at in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             text(WIDTH / 2, 20, title), text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_name),
             text(8, TOP - 12, y_name, "start")]
    for tick in x.ticks():
        parts.append(f'<path d="M{x.at(tick):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(text(x.at(tick), HEIGHT - BOTTOM + 16, f"{tick:g}"))
    for tick in y.ticks():
        parts.append(f'<path d="M{LEFT} {y.at(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(text(LEFT - 6, y.at(tick) + 4, f"{tick:g}", "end"))
    for number, (name, line) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(text(WIDTH - RIGHT + 10, TOP + 18 * number, name, "start", color))
    return "\n".join([*parts, "</svg>\n"])

"use strict";
// Two drawings, in the colours of the page: curves by depth or layer, and values with intervals.

// Scale: chart's frame, and its axes with ticks [value, words].
function frame(wide, high, left, labels, x, y) {
  const box = { left, top: labels.y ? 26 : 8, right: wide - 74, bottom: high - 34 };
  const at = (axis, low, high_) => (v) => low + ((axis.of?.(v) ?? v) - axis.from) / (axis.to - axis.from) * (high_ - low);
  const px = at(x, box.left, box.right), py = at(y, box.bottom, box.top);
  const svg = make("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": labels.title });
  for (const [value, words] of y.ticks)
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: py(value), y2: py(value) }),
      make("text", { class: "tick", x: box.left - 6, y: py(value) + 4, "text-anchor": "end" }, words));
  for (const [value, words] of x.ticks)
    svg.append(make("line", { class: "frame", x1: px(value), x2: px(value), y1: box.bottom, y2: box.bottom + 4 }),
      make("text", { class: "tick", x: px(value), y: box.bottom + 16, "text-anchor": "middle" }, words));
  svg.append(make("line", { class: "frame", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    make("text", { x: (box.left + box.right) / 2, y: high - 4, "text-anchor": "middle" }, labels.x));
  return { svg, box, px, py };
}

const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");

// A chart is as wide as the screen lets it be, so that its words keep their size.
const wideness = (most) => Math.max(300, Math.min(most, innerWidth - 26));

// lines: {argument: {x: [], y: [], low: [], high: []}, answer: ...}; names stand at their right ends.
function curves(lines, labels, x, y, extra = () => {}, most = 620) {
  const { svg, box, px, py } = frame(wideness(most), 270, 70, labels, x, y);
  extra(svg, box, px);
  const ends = [];
  for (const [name, line] of Object.entries(lines)) {
    const points = line.x.map((value, k) => [px(value), py(line.y[k])]);
    if (line.low) svg.append(make("path", { class: `band ${name}`, d: path([
      ...line.x.map((value, k) => [px(value), py(line.high[k])]),
      ...line.x.map((value, k) => [px(value), py(line.low[k])]).reverse()]) + "Z" }));
    svg.append(make("path", { class: `line ${name}`, d: path(points) }));
    ends.push([name, points.at(-1)]);
  }
  // Two names that would lie on each other are moved apart.
  ends.sort((a, b) => a[1][1] - b[1][1]);
  if (ends.length > 1 && ends[1][1][1] - ends[0][1][1] < 13) {
    const middle = (ends[0][1][1] + ends[1][1][1]) / 2;
    ends[0][1][1] = middle - 7; ends[1][1][1] = middle + 7;
  }
  for (const [name, [, high]] of ends) svg.append(make("text", { class: name, x: box.right + 8, y: high + 4 }, name));
  svg.append(make("text", { x: 2, y: 11 }, labels.y));
  return svg;
}

const SHARES = { from: 0, to: 1, ticks: [0, 0.25, 0.5, 0.75, 1].map((v) => [v, v.toFixed(2)]) };

// rows: {words, value, low, high, control, note}; `before` is a dashed line for all.
function dots(rows, labels, before) {
  const wide = wideness(620), step = 21, left = wide < 500 ? 150 : 190, high = rows.length * step + 52;
  const x = { from: 0, to: 1, ticks: [0, 0.25, 0.5, 0.75, 1].map((v) => [v, String(v)]) };
  const { svg, box, px } = frame(wide, high, left, labels, x, { from: 0, to: 1, ticks: [] });
  svg.append(make("line", { class: "mark", x1: px(before), x2: px(before), y1: box.top, y2: box.bottom }));
  rows.forEach((row, k) => {
    const y = box.top + step * (k + 0.5), kind = row.control ? " control" : "";
    svg.append(make("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, row.words),
      make("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }),
      make("line", { class: `whisker${kind}`, x1: px(row.low), x2: px(row.high), y1: y, y2: y }),
      make("circle", { class: `dot${kind}`, cx: px(row.value), cy: y, r: 4.2 }),
      make("text", { class: "tick", x: box.right + 8, y: y + 4 }, row.note));
  });
  return svg;
}

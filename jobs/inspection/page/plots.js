"use strict";
/* Plots as SVG, drawn at the width they have on the screen, with values on hover, touch and arrow keys.

What a plot is, document.py says: LinePlot, BarPlot, HistogramPlot and PointPlot, without the fields that are None. */

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function html(name, attributes, parent, text) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function seriesColor(index) { return `var(--series-${index % 8})`; }

/* A colour for a place in an order, 0 to 1, that stands out on dark and on light. */
function shade(place) { return `hsl(${Math.round(330 - 290 * place)} 62% 54%)`; }

const NOTES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];

/* Note name and deviation in cents of a frequency in Hz, A4 = 440 Hz. */
function noteOf(frequency) {
  const midi = 69 + 12 * Math.log2(frequency / 440);
  const nearest = Math.round(midi);
  return {name: NOTES[((nearest % 12) + 12) % 12] + (Math.floor(nearest / 12) - 1), cents: Math.round(100 * (midi - nearest))};
}

function binFrequency(pitch, bin) { return pitch.lowest * 2 ** (bin / pitch.per_octave); }

function pitchText(pitch, bin) {
  const frequency = binFrequency(pitch, bin);
  const note = noteOf(frequency);
  const cents = note.cents ? ` ${note.cents > 0 ? "+" : "−"}${Math.abs(note.cents)} ct` : "";
  return `${note.name}${cents} (${frequency < 1000 ? frequency.toFixed(1) : Math.round(frequency)} Hz)`;
}

/* The bins that lie nearest to a C, with their names. */
function octaveTicks(pitch, bins) {
  const ticks = [];
  for (let octave = 0; octave < 12; octave++) {
    const bin = Math.log2(440 * 2 ** ((12 * (octave + 1) - 69) / 12) / pitch.lowest) * pitch.per_octave;
    if (bin > -0.5 && bin < bins - 0.5) ticks.push({at: Math.max(0, bin), text: `C${octave}`});
  }
  return ticks;
}

function formatNumber(value, format) {
  if (value === null || value === undefined) return "–";
  if (format === "percent") return `${Number((100 * value).toPrecision(3))} %`;
  if (format === "count") return Math.round(value).toLocaleString("en");
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "−").replace("e-", "e−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

/* Round values between low and high, about `count` of them. */
function linearTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= raw * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) ticks.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return ticks;
}

function logTicks(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const skip = Math.ceil((last - first + 1) / 7);
  const ticks = [];
  for (let power = first; power <= last; power += skip) ticks.push(10 ** power);
  if (ticks.length > 2) return ticks;
  const finer = [];
  for (let power = first - 1; power <= last; power++) for (const one of [1, 2, 5]) finer.push(one * 10 ** power);
  const inside = finer.filter(at => at >= low * 0.999 && at <= high * 1.001);
  return inside.length > 1 ? inside : [low, high];
}

/* A map of [low, high] to [from, to], with its ticks. */
function scaleOf(low, high, from, to, log, ticks) {
  if (low === high) { high = log ? low * 10 : low + (Math.abs(low) || 1); }
  const forward = log ? value => Math.log(value) : value => value;
  const [a, b] = [forward(low), forward(high)];
  return {
    at: value => from + (forward(value) - a) / (b - a) * (to - from),
    ticks: log ? logTicks(low, high) : linearTicks(low, high, ticks),
  };
}

function drawPlot(figure, plot) {
  const svgOld = figure.querySelector(".drawing");
  const width = Math.max(240, figure.clientWidth - 26), height = plot.kind === "bars" && plot.sideways ? 26 * plot.labels.length + 6 : Math.round(Math.min(230, width * 0.62));
  const drawing = svg("svg", {class: "drawing", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": plot.title});
  const draw = plot.sideways ? drawSideways : {lines: drawLines, points: drawPoints}[plot.kind] || drawColumns;
  const points = draw(drawing, plot, width, height);
  if (svgOld) svgOld.replaceWith(drawing); else figure.append(drawing);
  attachHover(figure, drawing, points, width, height);
}

function frameOf(width, height) {
  return {left: 52, right: width - 8, top: 22, bottom: height - 34};
}

function drawAxes(drawing, plot, box, x, y, xTicks) {
  for (const tick of y.ticks) {
    svg("line", {class: "gridline", x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick)}, drawing);
    svg("text", {x: box.left - 6, y: y.at(tick) + 4, "text-anchor": "end"}, drawing, formatNumber(tick, plot.y.format));
  }
  let freeFrom = -Infinity;
  for (const tick of xTicks) {
    const at = Math.min(Math.max(x.at(tick.at), box.left), box.right), half = tick.text.length * 3.3;
    if (at - half < freeFrom) continue;
    freeFrom = at + half + 6;
    svg("text", {x: Math.min(at, box.right + 8 - half), y: box.bottom + 15, "text-anchor": "middle"}, drawing, tick.text);
  }
  svg("line", {class: "axisline", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}, drawing);
  svg("text", {x: box.right, y: box.bottom + 30, "text-anchor": "end"}, drawing, plot.x.label);
  svg("text", {x: 0, y: 8, "text-anchor": "start"}, drawing, plot.y.label);
}

function drawColumns(drawing, plot, width, height) {
  const box = frameOf(width, height);
  const isHistogram = plot.kind === "histogram";
  const groups = isHistogram ? [{label: plot.y.label, values: plot.counts}] : plot.series;
  const count = groups[0].values.length;
  const heights = groups.flatMap(group => [...group.values, ...(group.high || []), ...(group.low || [])]);
  const most = Math.max(...heights, plot.y.most || 0) || 1, least = Math.min(...heights, 0);
  const y = scaleOf(least, most, box.bottom, box.top, false, 4);
  const x = isHistogram
    ? scaleOf(plot.edges[0], plot.edges[count], box.left, box.right, false, Math.max(2, Math.floor(width / 80)))
    : scaleOf(-0.5, count - 0.5, box.left, box.right, false, count);
  const ticks = isHistogram
    ? x.ticks.map(at => ({at, text: formatNumber(at)}))
    : plot.labels.map((text, at) => ({at, text}));
  drawAxes(drawing, plot, box, x, y, ticks);
  const points = [];
  for (let bar = 0; bar < count; bar++) {
    const from = isHistogram ? x.at(plot.edges[bar]) : x.at(bar - 0.38), to = isHistogram ? x.at(plot.edges[bar + 1]) : x.at(bar + 0.38);
    const each = (to - from) / groups.length;
    groups.forEach((group, index) => {
      const value = group.values[bar], ends = [y.at(Math.max(value, 0)), y.at(Math.min(value, 0))], tall = value ? Math.max(1, ends[1] - ends[0]) : 0;
      svg("rect", {
        class: "bar", x: from + index * each + 0.5, y: value > 0 ? ends[1] - tall : ends[0], width: Math.max(0.5, each - 1), height: tall, rx: 1.5, fill: seriesColor(index),
      }, drawing);
      if (group.low) whisker(drawing, from + (index + 0.5) * each, y.at(group.low[bar]), y.at(group.high[bar]), Math.min(5, each / 4), true);
    });
    const name = isHistogram
      ? `${formatNumber(plot.edges[bar])} to ${formatNumber(plot.edges[bar + 1])} ${plot.x.unit || ""}`.trim()
      : `${plot.x.label} ${plot.labels[bar]}`;
    const values = groups.map(group => `${group.label}: ${valueText(group, "values", bar, plot.y.format)}`);
    points.push({x: (from + to) / 2, y: y.at(Math.max(...groups.map(group => group.values[bar]))), text: [name, ...values].join("\n")});
  }
  return points;
}

/* The line between the ends of an interval, which lies along y if it is upright, else along x. */
function whisker(drawing, at, low, high, half, upright) {
  const path = upright
    ? `M${at - half} ${low}h${2 * half}M${at - half} ${high}h${2 * half}M${at} ${low}V${high}`
    : `M${low} ${at - half}v${2 * half}M${high} ${at - half}v${2 * half}M${low} ${at}H${high}`;
  svg("path", {class: "whisker", d: path}, drawing);
}

/* A value with its interval, where it has one. */
function valueText(series, key, at, format) {
  const value = formatNumber(series[key][at], format);
  return series.low ? `${value} (${formatNumber(series.low[at], format)} to ${formatNumber(series.high[at], format)})` : value;
}

function drawSideways(drawing, plot, width, height) {
  const longest = Math.min(width * 0.45, 7 * Math.max(...plot.labels.map(label => label.length)) + 8);
  const bars = plot.series[0], values = bars.values, most = Math.max(...values, ...(bars.high || []), plot.y.most || 0) || 1;
  const x = scaleOf(0, most, longest, width - 46, false, 3);
  return plot.labels.map((label, row) => {
    const top = 6 + 26 * row, to = Math.max(longest + 1, x.at(values[row]));
    svg("text", {x: longest - 8, y: top + 14, "text-anchor": "end"}, drawing, label.length * 7 > longest ? label.slice(0, Math.floor(longest / 7) - 1) + "…" : label);
    svg("rect", {class: "bar", x: longest, y: top, width: to - longest, height: 18, rx: 3, fill: seriesColor(0)}, drawing);
    if (bars.low) whisker(drawing, top + 9, x.at(bars.low[row]), x.at(bars.high[row]), 4, false);
    svg("text", {x: Math.max(to, bars.high ? x.at(bars.high[row]) : 0) + 6, y: top + 14}, drawing, formatNumber(values[row], plot.y.format));
    return {x: to, y: top, row: top + 9, text: `${label}: ${valueText(bars, "values", row, plot.y.format)} ${plot.y.label}`};
  });
}

function drawLines(drawing, plot, width, height) {
  const box = frameOf(width, height);
  const numbers = key => plot.series.flatMap(series => series[key].filter((value, at) => value !== null && series.y[at] !== null && (!plot[key].log || value > 0)));
  const [xs, ys] = [numbers("x"), numbers("y")];
  if (!xs.length) { svg("text", {x: width / 2, y: height / 2, "text-anchor": "middle"}, drawing, "no finite value"); return []; }
  const extent = values => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const [xLow, xHigh] = extent(xs);
  const ends = plot.series.flatMap(series => [...(series.low || []), ...(series.high || [])]).filter(value => value !== null && (!plot.y.log || value > 0));
  let [yLow, yHigh] = extent([...ys, ...ends]);
  if (plot.y.zero) yLow = Math.min(0, yLow);
  if (!plot.y.log && !plot.y.zero) { const room = (yHigh - yLow) * 0.04; yLow -= room; yHigh += room; }
  const x = scaleOf(xLow, xHigh, box.left, box.right, plot.x.log, Math.max(2, Math.floor(width / 80)));
  const y = scaleOf(yLow, yHigh, box.bottom, box.top, plot.y.log, 4);
  const named = x.ticks.filter(at => plot.x.format !== "count" || Number.isInteger(at));
  const ticks = plot.x.pitch ? octaveTicks(plot.x.pitch, xHigh + 1) : named.map(at => ({at, text: formatNumber(at, plot.x.format)}));
  drawAxes(drawing, plot, box, x, y, ticks);
  const byX = new Map();
  for (const series of plot.series) {
    if (series.low) {
      const inside = series.x.map((at, index) => index).filter(index => [series.low[index], series.high[index]].every(value => value !== null && (!plot.y.log || value > 0)));
      const corner = (index, value) => `${x.at(series.x[index]).toFixed(2)} ${y.at(value).toFixed(2)}`;
      const outline = [...inside.map(index => corner(index, series.high[index])), ...inside.reverse().map(index => corner(index, series.low[index]))];
      svg("path", {class: "band", d: outline.length ? `M${outline.join("L")}Z` : "", fill: series.color}, drawing);
    }
    let path = "", pen = "M";
    series.x.forEach((at, index) => {
      const value = series.y[index];
      if (value === null || (plot.y.log && value <= 0)) { pen = "M"; return; }
      path += `${pen}${x.at(at).toFixed(2)} ${y.at(value).toFixed(2)}`;
      pen = "L";
      if (!byX.has(at)) byX.set(at, []);
      byX.get(at).push({value, text: `${series.label}: ${valueText(series, "y", index, plot.y.format)}`});
    });
    const shown = series.y.filter(value => value !== null).length;
    svg("path", {
      class: "curve", d: path, fill: "none", stroke: series.color, "stroke-width": series.faint ? 1.2 : 1.8, "stroke-linejoin": "round",
      opacity: series.faint ? 0.55 : 1,
    }, drawing);
    if (shown <= 30) series.x.forEach((at, index) => {
      if (series.y[index] !== null && (!plot.y.log || series.y[index] > 0)) svg("circle", {cx: x.at(at), cy: y.at(series.y[index]), r: 2.4, fill: series.color, opacity: series.faint ? 0.55 : 1}, drawing);
    });
  }
  return [...byX.entries()].sort((a, b) => a[0] - b[0]).map(([at, values]) => {
    const name = plot.x.pitch ? pitchText(plot.x.pitch, at) : `${plot.x.label} ${formatNumber(at, plot.x.format || "count")}`;
    const lines = values.slice(0, 12).map(each => each.text);
    return {x: x.at(at), y: y.at(values[0].value), guide: true, text: [name, ...lines].join("\n")};
  });
}

function drawPoints(drawing, plot, width, height) {
  const box = frameOf(width, height);
  const [xs, ys] = ["x", "y"].map(key => plot.series.flatMap(series => series[key]));
  const x = scaleOf(Math.min(...xs), Math.max(...xs), box.left + 8, box.right - 8, false, 4);
  const y = scaleOf(Math.min(...ys), Math.max(...ys), box.bottom - 8, box.top + 8, false, 4);
  drawAxes(drawing, plot, box, x, y, x.ticks.map(at => ({at, text: formatNumber(at)})));
  const points = [];
  plot.series.forEach((series, index) => series.x.forEach((at, place) => {
    const point = {x: x.at(at), y: y.at(series.y[place]), near: true, text: `${series.names[place]}\n${series.label}`};
    svg("circle", {class: "point", cx: point.x, cy: point.y, r: xs.length > 400 ? 2.2 : 4, fill: seriesColor(index), "fill-opacity": 0.75}, drawing);
    points.push(point);
  }));
  return points.sort((a, b) => a.x - b.x);
}

/* A tip beside the point nearest to the pointer; arrow keys move along the points. */
function attachHover(figure, drawing, points, width, height) {
  const tip = figure.querySelector(".tip");
  const guide = svg("line", {class: "guide", y1: 12, y2: height - 34, visibility: "hidden"}, drawing);
  let current = -1;
  const show = index => {
    if (!points.length) return;
    current = Math.min(Math.max(index, 0), points.length - 1);
    const point = points[current];
    tip.textContent = point.text;
    tip.hidden = false;
    const scale = drawing.clientWidth / width || 1, left = drawing.offsetLeft || 12;
    const top = drawing.getBoundingClientRect().top - figure.getBoundingClientRect().top;
    const room = figure.clientWidth - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(4, Math.min(room, 12 + point.x * scale + 10))}px`;
    if (12 + point.x * scale + 10 > room) tip.style.left = `${Math.max(4, 12 + point.x * scale - tip.offsetWidth - 10)}px`;
    tip.style.top = `${Math.max(0, top + Math.min(point.y, height - 40) * scale - tip.offsetHeight / 2)}px`;
    if (point.guide) { guide.setAttribute("x1", point.x); guide.setAttribute("x2", point.x); guide.setAttribute("visibility", "visible"); }
  };
  const hide = () => { tip.hidden = true; guide.setAttribute("visibility", "hidden"); };
  const nearest = event => {
    const bounds = drawing.getBoundingClientRect();
    const x = (event.clientX - bounds.left) / bounds.width * width, y = (event.clientY - bounds.top) / bounds.height * height;
    const distance = point => point.row !== undefined ? Math.abs(point.row - y) : point.near ? Math.hypot(point.x - x, point.y - y) : Math.abs(point.x - x);
    let best = 0;
    points.forEach((point, index) => { if (distance(point) < distance(points[best])) best = index; });
    return best;
  };
  drawing.addEventListener("pointermove", event => show(nearest(event)));
  drawing.addEventListener("pointerdown", event => show(nearest(event)));
  drawing.addEventListener("pointerleave", hide);
  figure.onkeydown = event => {
    const last = points.length - 1;
    const next = {ArrowLeft: current < 0 ? last : current - 1, ArrowRight: current + 1, Home: 0, End: last}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(next);
  };
  figure.onblur = hide;
}

function setUpPlot(figure, plot) {
  if (plot.wide) figure.classList.add("wide");
  figure.tabIndex = 0;
  html("figcaption", {}, figure, plot.title);
  if (plot.hint) html("p", {class: "hint"}, figure, plot.hint);
  const named = (plot.series || []).filter(series => series.label);
  if (plot.kind === "lines") plot.series.forEach((series, index) => {
    series.color = series.shade === undefined ? seriesColor(series.color === undefined ? index : series.color) : shade(series.shade);
  });
  if (!plot.sideways && named.length > 1) {
    const legend = html("ul", {class: "legend"}, figure);
    named.forEach((series, index) => {
      const item = html("li", {}, legend);
      const swatch = svg("svg", {viewBox: "0 0 18 10", "aria-hidden": "true"}, item);
      if (plot.kind === "lines") svg("line", {x1: 0, x2: 18, y1: 5, y2: 5, stroke: series.color, "stroke-width": 2.5, opacity: series.faint ? 0.55 : 1}, swatch);
      else if (plot.kind === "points") svg("circle", {cx: 8, cy: 5, r: 4, fill: seriesColor(index)}, swatch);
      else svg("rect", {x: 2, y: 0, width: 12, height: 10, rx: 2, fill: seriesColor(index)}, swatch);
      item.append(series.label);
    });
  }
  const tip = html("div", {class: "tip", role: "status"}, figure);
  tip.hidden = true;
  let drawn = 0;
  new ResizeObserver(() => {
    if (figure.clientWidth === drawn) return;
    drawn = figure.clientWidth;
    drawPlot(figure, plot);
  }).observe(figure);
}

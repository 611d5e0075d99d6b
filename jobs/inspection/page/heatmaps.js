/* Pictures of an example on one time axis: waveform, levels of a continuous target, codes of a discrete one.

Every panel draws frames [view.start, view.end) to the right of a gutter for its axis, and tells its value at a point. */

const GUTTER = 36;
const FIRE = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]];

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), char => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function fire(share) {
  const place = Math.min(Math.max(share, 0), 1) * (FIRE.length - 1), index = Math.min(Math.floor(place), FIRE.length - 2), rest = place - index;
  return FIRE[index].map((from, channel) => Math.round(from + (FIRE[index + 1][channel] - from) * rest));
}

/* Codes have no order: neighbours in number get colours far apart, one code the same colour everywhere. */
function codeColor(code) {
  const hue = (code * 0.61803398875) % 1, light = 0.42 + 0.2 * ((code * 0.7548776662) % 1);
  return [0, 8, 4].map(n => {
    const k = (n + hue * 12) % 12;
    return Math.round(255 * (light - 0.55 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

function picture(columns, rows, colorAt) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  let at = 0;
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const color = colorAt(row, column);
    image.data[at++] = color[0];
    image.data[at++] = color[1];
    image.data[at++] = color[2];
    image.data[at++] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/* Make a canvas as fine as the screen, and clear it; gives its context in CSS pixels. */
function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const style = getComputedStyle(canvas);
  context.font = "10.5px system-ui, sans-serif";
  context.fillStyle = style.getPropertyValue("--soft");
  context.strokeStyle = style.getPropertyValue("--line");
  return {context, width: width - GUTTER, color: name => style.getPropertyValue(name)};
}

function axisText(context, text, y, height) {
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(text, GUTTER - 5, Math.min(Math.max(y, 6), height - 6));
}

class WavePanel {
  constructor(outlines, perFrame) { this.outlines = outlines; this.perFrame = perFrame; this.active = 0; this.height = 64; }

  draw(canvas, view) {
    const {context, width, color} = prepare(canvas, this.height), values = this.outlines[this.active], count = values.length / 2;
    const middle = this.height / 2;
    context.fillStyle = color("--series-1");
    for (let pixel = 0; pixel < width; pixel++) {
      const from = Math.floor((view.start + (view.end - view.start) * pixel / width) * this.perFrame);
      const to = Math.max(from + 1, Math.floor((view.start + (view.end - view.start) * (pixel + 1) / width) * this.perFrame));
      let low = 0, high = 0;
      for (let at = from; at < Math.min(to, count); at++) { low = Math.min(low, values[at]); high = Math.max(high, values[count + at]); }
      context.fillRect(GUTTER + pixel, middle - high / 127 * middle, 1, Math.max(1, (high - low) / 127 * middle));
    }
    context.fillStyle = color("--soft");
    axisText(context, "+1", 0, this.height);
    axisText(context, "0", middle, this.height);
    axisText(context, "−1", this.height, this.height);
  }

  text(frame) {
    const values = this.outlines[this.active], count = values.length / 2, at = Math.min(Math.floor(frame * this.perFrame), count - 1);
    return `amplitude ${(values[at] / 127).toFixed(2)} to ${(values[count + at] / 127).toFixed(2)}`.replaceAll("-", "−");
  }
}

class LevelPanel {
  constructor(panel, levels) {
    Object.assign(this, panel, panel.scale);
    this.levels = levels;
    this.height = Math.min(230, Math.max(60, panel.rows * 2));
    const colors = Array.from({length: this.last + 1}, (_, level) => fire(level / this.last));
    this.image = picture(panel.columns, panel.rows, (row, column) => colors[levels[(panel.rows - 1 - row) * panel.columns + column]]);
  }

  draw(canvas, view) {
    const {context, width} = prepare(canvas, this.height);
    context.imageSmoothingQuality = "high";
    context.imageSmoothingEnabled = view.end - view.start > width;
    context.drawImage(this.image, view.start, 0, view.end - view.start, this.rows, GUTTER, 0, width, this.height);
    const ticks = this.pitch ? octaveTicks(this.pitch, this.rows) : linearTicks(0, this.rows - 1, 4).map(at => ({at, text: String(at)}));
    for (const tick of ticks) {
      const y = (1 - (tick.at + 0.5) / this.rows) * this.height;
      axisText(context, tick.text, y, this.height);
      context.fillRect(GUTTER - 4, y, 4, 1);
    }
  }

  text(frame, share) {
    const bin = Math.min(this.rows - 1, Math.max(0, Math.floor((1 - share) * this.rows)));
    const level = this.levels[bin * this.columns + Math.min(this.columns - 1, Math.floor(frame))];
    return `${this.name} ${this.pitch ? pitchText(this.pitch, bin) : `bin ${bin}`}: ${this.value(level)}`;
  }

  value(level) {
    if (!this.decibels) return formatNumber(this.bottom + (this.top - this.bottom) * level / this.last);
    const decibels = (level - this.last) * this.step;
    return `${level ? "" : "below "}${formatNumber(this.top * 10 ** (decibels / 20))} (${decibels.toFixed(1).replace("-", "−")} dB)`;
  }
}

class CodePanel {
  constructor(panel, codes, shares) {
    Object.assign(this, panel);
    this.codes = codes;
    this.shares = shares;
    this.rowHeight = Math.min(26, Math.max(3, Math.round(128 / panel.rows)));
    this.height = this.rowHeight * panel.rows;
    const colors = new Map();
    const color = code => { if (!colors.has(code)) colors.set(code, codeColor(code)); return colors.get(code); };
    this.image = picture(panel.columns, panel.rows, (row, column) => color(codes[row * panel.columns + column]));
  }

  draw(canvas, view) {
    const {context, width} = prepare(canvas, this.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, view.start, 0, view.end - view.start, this.rows, GUTTER, 0, width, this.height);
    for (let row = 0; row < this.rows; row += Math.ceil(11 / this.rowHeight)) axisText(context, String(row), (row + 0.5) * this.rowHeight, this.height);
  }

  text(frame, share) {
    const level = Math.min(this.rows - 1, Math.max(0, Math.floor(share * this.rows)));
    const code = this.codes[level * this.columns + Math.min(this.columns - 1, Math.floor(frame))];
    return `${this.name} codebook ${level}: code ${code} of ${this.entries}\nin ${formatNumber(this.shares[level * this.entries + code], "percent")} of all frames`;
  }
}

class TimePanel {
  constructor(frameRate) { this.frameRate = frameRate; this.height = 16; }

  draw(canvas, view) {
    const {context, width} = prepare(canvas, this.height), [from, to] = [view.start / this.frameRate, view.end / this.frameRate];
    context.textBaseline = "top";
    const ticks = linearTicks(from, to, Math.max(2, Math.floor(width / 75)));
    const digits = ticks.length > 1 && ticks[1] - ticks[0] < 1 ? (ticks[1] - ticks[0] < 0.1 ? 2 : 1) : 0;
    for (const tick of ticks) {
      const x = GUTTER + (tick - from) / (to - from) * width;
      context.fillRect(x, 0, 1, 3);
      context.textAlign = x < GUTTER + 12 ? "left" : x > GUTTER + width - 14 ? "right" : "center";
      context.fillText(`${tick.toFixed(digits)} s`, x, 4);
    }
  }

  text() { return ""; }
}

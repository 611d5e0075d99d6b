/* One example: a player whose playhead runs over the pictures, and the same sound from the codes at the press of a key.

What an example is, document.py says: Example, Sound, LevelPanel and CodePanel; bytes are base64. */

const SPANS = [[null, "Whole"], [10, "10 s"], [3, "3 s"]];
let playing = null;

function clock(seconds) {
  const tenths = Math.max(0, Math.round(seconds * 10));
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

class ExampleView {
  constructor(parent, example, shares) {
    this.shares = shares;
    this.example = example;
    this.active = 0;
    this.span = null;
    this.view = {start: 0, end: example.frames};
    this.article = html("article", {class: "example", "aria-label": example.title}, parent);
    html("h3", {}, this.article, example.title);
    html("p", {class: "meta"}, this.article, example.meta);
    this.buildTransport();
    this.buildFigure();
    this.refresh = () => { this.follow(); if (this.audio && !this.audio.paused) requestAnimationFrame(this.refresh); };
  }

  get audio() { return this.audios[this.active]; }

  buildTransport() {
    const bar = html("div", {class: "transport"}, this.article);
    this.playButton = html("button", {type: "button", class: "play"}, bar, "Play");
    this.playButton.addEventListener("click", () => this.toggle());
    this.time = html("span", {class: "time"}, bar);
    if (this.example.sources.length > 1) {
      this.sourceButtons = this.buttons(bar, "What is played", this.example.sources.map(source => source.label), index => this.choose(index));
    }
    if (this.example.seconds > 3) {
      const spans = SPANS.filter(([span]) => !span || span < this.example.seconds);
      this.spanButtons = this.buttons(bar, "How much is shown", spans.map(([, label]) => label), index => this.zoom(spans[index][0], index));
    }
    this.audios = this.example.sources.map(source => {
      const bytes = Uint8Array.from(atob(source.audio), char => char.charCodeAt(0));
      const audio = html("audio", {preload: "auto", "data-label": source.label}, bar);
      audio.src = URL.createObjectURL(new Blob([bytes], {type: source.type}));
      source.audio = null;
      audio.addEventListener("play", () => { if (playing && playing !== this) playing.pause(); playing = this; this.playButton.textContent = "Pause"; this.refresh(); });
      audio.addEventListener("pause", () => { if (audio === this.audio) this.playButton.textContent = "Play"; this.follow(); });
      audio.addEventListener("seeked", () => this.follow());
      return audio;
    });
  }

  buttons(parent, label, texts, action) {
    const group = html("span", {class: "group", role: "group", "aria-label": label}, parent);
    return texts.map((text, index) => {
      const button = html("button", {type: "button", "aria-pressed": String(index === 0)}, group, text);
      button.addEventListener("click", () => action(index));
      return button;
    });
  }

  buildFigure() {
    this.figure = html("div", {class: "panels", tabindex: "0", role: "slider", "aria-label": `Position in ${this.example.title}`, "aria-valuemin": "0", "aria-valuemax": this.example.seconds.toFixed(1)}, this.article);
    this.canvases = [];
    this.playhead = html("div", {class: "playhead"}, this.figure);
    this.tip = html("div", {class: "tip"}, this.figure);
    this.tip.hidden = true;
    const keys = html("p", {class: "keys"}, this.article);
    const hints = [["Space", "play"], ["← →", "1 s"], ["Shift ← →", "one frame"], ["Home End", "ends"]];
    if (this.example.sources.length > 1) hints.push(["X", "other sound"]);
    hints.forEach(([key, meaning], index) => {
      keys.append(index ? " · " : "");
      html("kbd", {}, keys, key);
      keys.append(` ${meaning}`);
    });
  }

  /* Inflate and draw; called once, when the example comes near the screen. */
  async load() {
    const example = this.example;
    const outlines = await Promise.all(example.sources.map(async source => new Int8Array(await inflate(source.outline))));
    this.wave = new WavePanel(outlines, example.outline_per_frame);
    this.add("waveform", this.wave);
    for (const panel of example.panels) {
      const data = await inflate(panel.data);
      if (panel.kind === "levels") this.add(panel.title, new LevelPanel(panel, new Uint8Array(data)));
      else this.add(panel.title, new CodePanel(panel, new Uint16Array(data), new Float32Array(await inflate(this.shares[panel.name]))));
      panel.data = null;
    }
    this.add("", new TimePanel(example.frame_rate));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.figure);
    this.draw();
    this.article.dataset.ready = "yes";
  }

  add(label, panel) {
    if (label) html("p", {class: "label"}, this.figure, label);
    const canvas = html("canvas", {"data-panel": panel.name || (panel === this.wave ? "waveform" : "time"), "aria-hidden": "true"}, this.figure);
    canvas.panel = panel;
    this.canvases.push(canvas);
  }

  draw() {
    for (const canvas of this.canvases) canvas.panel.draw(canvas, this.view);
    this.movePlayhead();
  }

  /* Bring the view and the playhead to where the sound is. */
  follow() {
    const frame = this.audio.currentTime * this.example.frame_rate, length = this.view.end - this.view.start;
    if (this.span !== null) {
      const start = Math.min(Math.max(frame - length / 2, 0), this.example.frames - length);
      if (start !== this.view.start) { this.view = {start, end: start + length}; this.draw(); }
    }
    this.movePlayhead();
  }

  movePlayhead() {
    const seconds = this.audio.currentTime, frame = seconds * this.example.frame_rate, width = this.figure.clientWidth - GUTTER;
    const x = GUTTER + (frame - this.view.start) / (this.view.end - this.view.start) * width;
    this.playhead.style.transform = `translateX(${Math.min(Math.max(x, GUTTER), GUTTER + width)}px)`;
    this.time.textContent = `${clock(seconds)} / ${clock(this.example.seconds)}`;
    this.figure.setAttribute("aria-valuenow", seconds.toFixed(1));
    this.figure.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${this.example.seconds.toFixed(1)} seconds`);
  }

  toggle() { if (this.audio.paused) this.audio.play(); else this.pause(); }

  pause() { this.audio.pause(); }

  seek(seconds) {
    this.audio.currentTime = Math.min(Math.max(seconds, 0), this.example.seconds - 0.001);
    this.follow();
  }

  /* The other sound from the same moment on. */
  choose(index) {
    const before = this.audio, ran = !before.paused;
    this.active = index;
    before.pause();
    this.audio.currentTime = before.currentTime;
    if (ran) this.audio.play();
    this.sourceButtons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    this.wave.active = index;
    this.draw();
  }

  zoom(span, index) {
    this.span = span;
    const length = span === null ? this.example.frames : Math.min(this.example.frames, span * this.example.frame_rate);
    this.view = {start: 0, end: length};
    this.spanButtons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    this.follow();
    this.draw();
  }

  frameAt(event) {
    const bounds = this.figure.getBoundingClientRect(), share = (event.clientX - bounds.left - GUTTER) / (bounds.width - GUTTER);
    return this.view.start + Math.min(Math.max(share, 0), 0.999999) * (this.view.end - this.view.start);
  }

  listen() {
    let scrubbing = false;
    const seekTo = event => this.seek(this.frameAt(event) / this.example.frame_rate);
    this.figure.addEventListener("pointerdown", event => {
      scrubbing = event.button === 0;
      if (!scrubbing) return;
      seekTo(event);
      this.figure.setPointerCapture(event.pointerId);
    });
    this.figure.addEventListener("pointermove", event => { this.showValue(event); if (scrubbing && this.span === null) seekTo(event); });
    for (const name of ["pointerup", "pointercancel"]) this.figure.addEventListener(name, () => { scrubbing = false; });
    this.figure.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.article.addEventListener("keydown", event => this.onKey(event));
  }

  showValue(event) {
    const frame = this.frameAt(event);
    const canvas = this.canvases.find(each => { const bounds = each.getBoundingClientRect(); return event.clientY >= bounds.top && event.clientY < bounds.bottom; });
    if (!canvas || !canvas.panel.text(frame, 0)) { this.tip.hidden = true; return; }
    const bounds = canvas.getBoundingClientRect(), figure = this.figure.getBoundingClientRect();
    const value = canvas.panel.text(frame, (event.clientY - bounds.top) / bounds.height);
    this.tip.textContent = `${(frame / this.example.frame_rate).toFixed(3)} s, frame ${Math.floor(frame)}\n${value}`;
    this.tip.hidden = false;
    const x = event.clientX - figure.left, left = x + 14 + this.tip.offsetWidth > figure.width ? x - 14 - this.tip.offsetWidth : x + 14;
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${Math.max(0, event.clientY - figure.top - this.tip.offsetHeight - 10)}px`;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = event.target.closest("button");
    const step = event.shiftKey ? 1 / this.example.frame_rate : 1;
    const actions = {
      " ": () => this.toggle(), ArrowLeft: () => this.seek(this.audio.currentTime - step), ArrowRight: () => this.seek(this.audio.currentTime + step),
      Home: () => this.seek(0), End: () => this.seek(this.example.seconds),
    };
    if (this.sourceButtons) actions.x = () => this.choose((this.active + 1) % this.example.sources.length);
    const action = actions[event.key.length > 1 ? event.key : event.key.toLowerCase()];
    if (!action || (onButton && event.key === " ")) return;
    event.preventDefault();
    action();
  }
}

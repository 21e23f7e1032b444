// Stacked bars over time, as plain SVG. A slider lies over them: with a pointer or the arrow keys it walks from bar to bar,
// and says what stands in each.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 220;
const LEFT = 52;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 26;

export class Chart {
  /** say(index or null): what is under the cursor was changed. */
  constructor(holder, say) {
    this.holder = holder;
    this.say = say;
    this.index = null;
    this.svg = make("svg", { role: "presentation", "aria-hidden": "true", height: HEIGHT });
    this.slider = document.createElement("div");
    this.slider.className = "cursor";
    this.slider.tabIndex = 0;
    this.slider.setAttribute("role", "slider");
    this.slider.setAttribute("aria-label", "Bar of the chart");
    holder.append(this.svg, this.slider);
    this.slider.addEventListener("keydown", (event) => this.key(event));
    this.slider.addEventListener("pointermove", (event) => this.point(event));
    this.slider.addEventListener("pointerdown", (event) => this.point(event));
    this.slider.addEventListener("pointerleave", () => this.leave());
    this.slider.addEventListener("focus", () => this.move(this.index ?? this.data.count - 1));
    this.slider.addEventListener("blur", () => this.move(null));
    new ResizeObserver(() => this.data && this.draw(this.data)).observe(holder);
  }

  /** data: {count, stacks: [{tone, values}], label(index), tick(index), axis(value), open(index), name} */
  draw(data) {
    this.data = data;
    const width = Math.max(this.holder.clientWidth, 240);
    const step = (width - LEFT - RIGHT) / data.count;
    const totals = Array.from({ length: data.count }, (_, at) => data.stacks.reduce((sum, one) => sum + one.values[at], 0));
    const scale = nice(Math.max(...totals, 0), data.whole);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / scale.top);
    const parts = [];
    for (const value of scale.ticks) {
      parts.push(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: crisp(y(value)), y2: crisp(y(value)) }));
      parts.push(make("text", { class: "axis", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, data.axis(value)));
    }
    const every = Math.ceil(data.count / Math.max(2, Math.floor((width - LEFT - RIGHT) / 84)) / data.tickStep) * data.tickStep;
    for (let at = 0; at < data.count; at++) {
      if (data.ordinal(at) % every) continue;
      const x = LEFT + at * step;
      if (x > width - 34) continue;
      parts.push(make("line", { class: "grid", x1: crisp(x), x2: crisp(x), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }));
      parts.push(make("text", { class: "axis", x, y: HEIGHT - 6, "text-anchor": x < LEFT + 16 ? "start" : "middle" }, data.tick(at)));
    }
    const gap = step > 5 ? Math.min(3, step * 0.22) : 0.6;
    for (let at = 0; at < data.count; at++) {
      let below = 0;
      for (const { tone, values } of data.stacks) {
        if (!values[at]) continue;
        const bottom = y(below);
        below += values[at];
        const top = y(below);
        const shape = { x: LEFT + at * step + gap / 2, y: top, width: Math.max(step - gap, 0.8), height: Math.max(bottom - top - (bottom < y(0) ? 1 : 0), 0.6) };
        parts.push(make("rect", { class: `tone-${tone}${data.open(at) ? " open" : ""}`, ...shape }));
      }
    }
    this.mark = make("rect", { class: "mark", y: TOP, height: HEIGHT - TOP - BOTTOM, width: step, x: LEFT });
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(this.mark, ...parts);
    this.step = step;
    this.slider.setAttribute("aria-valuemin", "1");
    this.slider.setAttribute("aria-valuemax", String(data.count));
    this.slider.setAttribute("aria-label", `${data.name} over time`);
    this.move(this.index, false);
  }

  move(index, tell = true) {
    this.index = index === null ? null : Math.min(Math.max(index, 0), this.data.count - 1);
    this.mark.classList.toggle("shown", this.index !== null);
    if (this.index !== null) this.mark.setAttribute("x", LEFT + this.index * this.step);
    const at = this.index ?? this.data.count - 1;
    this.slider.setAttribute("aria-valuenow", String(at + 1));
    if (tell || this.index === null) this.slider.setAttribute("aria-valuetext", this.data.label(at));
    this.say(this.index);
  }

  key(event) {
    const at = this.index ?? this.data.count - 1;
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10, PageUp: at + 10, Home: 0, End: this.data.count - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.move(to);
  }

  point(event) {
    const x = event.clientX - this.holder.getBoundingClientRect().left - LEFT;
    this.move(Math.floor(x / this.step));
  }

  leave() {
    if (document.activeElement !== this.slider) this.move(null);
  }
}

/** A round top for an axis, and its ticks. */
function nice(largest, isWhole) {
  if (largest <= 0) return { top: 1, ticks: [0] };
  const power = 10 ** Math.floor(Math.log10(largest));
  let step = [0.2, 0.25, 0.5, 1, 2, 2.5].map((each) => each * power).find((each) => largest / each <= 5.0001) ?? power * 2.5;
  if (isWhole) step = Math.max(1, Math.ceil(step));
  const top = Math.ceil(largest / step - 1e-9) * step;
  return { top, ticks: Array.from({ length: Math.round(top / step) + 1 }, (_, at) => at * step) };
}

const crisp = (value) => Math.round(value) + 0.5;

function make(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

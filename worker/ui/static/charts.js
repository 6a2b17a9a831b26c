// Draws the last hour's points as lines. Knows no server.

const SVG = "http://www.w3.org/2000/svg";
const HOUR = 3600;
const HEIGHT = 150, TOP = 8, BOTTOM = 130;
// More points than this in a line are drawn as the largest of several.
const MOST = 300;

export class Charts {
  constructor(element, windows) {
    this.figures = [...element.querySelectorAll(".chart")];
    this.points = [];
    this.series = [];
    for (const choice of windows) choice.addEventListener("change", () => this.draw());
    this.windows = [...windows];
    new ResizeObserver(() => this.draw()).observe(element);
  }

  add(series, points, anew) {
    this.series = series;
    if (anew) this.points = [];
    this.points.push(...points);
    const end = this.points.at(-1)?.[0] ?? 0;
    while (this.points.length && this.points[0][0] < end - HOUR) this.points.shift();
    this.draw();
  }

  draw() {
    const seconds = Number(this.windows.find((each) => each.checked).value);
    const end = this.points.at(-1)?.[0];
    if (end === undefined) return;
    const shown = this.points.filter((point) => point[0] >= end - seconds);
    const last = shown.at(-1);
    for (const figure of this.figures) {
      const names = figure.dataset.lines.split(" ");
      const places = names.map((name) => this.series.indexOf(name) + 1);
      const lines = places.map((place) => thinned(shown, place));
      drawChart(figure.querySelector("svg"), lines, end, seconds);
      const told = names.map((name, number) => {
        const text = inWords(last[places[number]], figure.dataset.unit);
        figure.querySelector(`[data-of="${name}"]`).textContent = text;
        return `${name.replaceAll("_", " ")} ${text}`;
      });
      figure.querySelector("svg").setAttribute("aria-label", told.join(", "));
    }
  }
}

function drawChart(svg, lines, end, seconds) {
  const width = Math.max(svg.clientWidth, 100);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const most = nice(Math.max(...lines.flat().map(([, value]) => value ?? 0), 0));
  const left = 8 + 6.5 * Math.max(label(most).length, label(most / 2).length);
  const x = (at) => left + (1 - (end - at) / seconds) * (width - left - 4);
  const y = (value) => BOTTOM - (value / most) * (BOTTOM - TOP);
  const drawn = [];
  for (const value of [0, most / 2, most]) {
    drawn.push(element("line", { class: "grid", x1: left, x2: width - 4, y1: y(value), y2: y(value) }));
    drawn.push(text(label(value), { x: left - 5, y: y(value) + 4, "text-anchor": "end" }));
  }
  drawn.push(text(`${seconds / 60} min ago`, { x: left, y: HEIGHT - 4 }));
  drawn.push(text("now", { x: width - 4, y: HEIGHT - 4, "text-anchor": "end" }));
  lines.forEach((points, number) => drawn.push(element("path", { class: `line-${number}`, d: path(points, x, y) })));
  svg.replaceChildren(...drawn);
}

// A gap where there is no number.
function path(points, x, y) {
  let drawn = "", pen = false;
  points.forEach(([at, value], number) => {
    if (value === null) {
      pen = false;
      return;
    }
    const alone = !pen && (points[number + 1]?.[1] ?? null) === null;
    drawn += `${pen ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}${alone ? "h2" : ""}`;
    pen = true;
  });
  return drawn;
}

function thinned(points, place) {
  const size = Math.ceil(points.length / MOST);
  if (size <= 1) return points.map((point) => [point[0], point[place]]);
  const thin = [];
  for (let first = 0; first < points.length; first += size) {
    const part = points.slice(first, first + size);
    const values = part.map((point) => point[place]).filter((value) => value !== null);
    thin.push([part.at(-1)[0], values.length ? Math.max(...values) : null]);
  }
  return thin;
}

// The next of 1, 2, 4, 5, 8, 10, so that half of it is short too.
function nice(value) {
  if (value <= 1) return value <= 0 ? 1 : value <= 0.1 ? 0.1 : 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 5, 8, 10].find((each) => each * power >= value);
}

function label(value) {
  if (value >= 1e6) return `${value / 1e6}M`;
  return value >= 1e4 ? `${value / 1e3}k` : String(Number(value.toPrecision(3)));
}

function inWords(value, unit) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  const text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return unit.startsWith("/") ? `${text}${unit}` : unit ? `${text} ${unit}` : text;
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function text(content, attributes) {
  const made = element("text", attributes);
  made.textContent = content;
  return made;
}

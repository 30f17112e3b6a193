// The first picture at once, before Plotly is there: points, lines and axes of what Plotly is told.

const SYMBOLS = {
  circle: "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0", square: "M-0.9,-0.9H0.9V0.9H-0.9Z", diamond: "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
  star: "M0,-1.3L0.3,-0.4H1.25L0.5,0.17L0.77,1.1L0,0.55L-0.77,1.1L-0.5,0.17L-1.25,-0.4H-0.3Z", cross: "M-1,-0.35H-0.35V-1H0.35V-0.35H1V0.35H0.35V1H-0.35V0.35H-1Z",
};

function drawing(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Evenly spread ticks of a linear axis. */
function evenTicks(low, high, most = 7) {
  const raw = (high - low) / most || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * unit).find((size) => size >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(Number((k * step).toPrecision(8)));
  return found;
}

function sketch(place, { data, layout: { xaxis, yaxis } }) {
  const width = place.clientWidth, height = place.clientHeight;
  const [left, right, top, bottom] = [64, width - 12, isTouched() ? 12 : 36, height - 115];
  const shown = data.filter((trace) => trace.visible !== "legendonly");
  const ups = shown.flatMap((trace) => trace.y);
  const isLog = yaxis.type === "log";
  const room = (Math.max(...ups) - Math.min(...ups)) * 0.06 || 1;
  const range = isLog ? yaxis.range : [Math.min(...ups) - room, Math.max(...ups) + room];
  const xOf = (value) => left + ((Math.log10(value) - xaxis.range[0]) / (xaxis.range[1] - xaxis.range[0])) * (right - left);
  const yOf = (value) => bottom - (((isLog ? Math.log10(value) : value) - range[0]) / (range[1] - range[0])) * (bottom - top);
  const soft = { fill: colour("soft"), "font-size": 13 };
  const parts = [];
  xaxis.tickvals.forEach((value, index) => parts.push(
    drawing("path", { d: `M${xOf(value)},${top}V${bottom}`, stroke: colour("grid") }),
    drawing("text", { x: xOf(value), y: bottom + 20, "text-anchor": "middle", ...soft }, xaxis.ticktext[index])));
  for (const value of isLog ? yaxis.tickvals : evenTicks(...range)) parts.push(
    drawing("path", { d: `M${left},${yOf(value)}H${right}`, stroke: colour("grid") }),
    drawing("text", { x: left - 8, y: yOf(value) + 4, "text-anchor": "end", ...soft }, String(value)));
  parts.push(drawing("text", { x: (left + right) / 2, y: bottom + 44, "text-anchor": "middle", fill: colour("ink"), "font-size": 15 }, xaxis.title.text),
    drawing("text", { transform: `translate(14,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", fill: colour("ink"), "font-size": 15 }, yaxis.title.text));
  for (const trace of shown) {
    if (trace.mode === "lines") {
      const points = trace.x.map((x, i) => (i && trace.line.shape === "hv" ? `H${xOf(x)}V${yOf(trace.y[i])}` : `${i ? "L" : "M"}${xOf(x)},${yOf(trace.y[i])}`));
      parts.push(drawing("path", { d: points.join(""), fill: "none", stroke: trace.line.color, "stroke-width": trace.line.width }));
      continue;
    }
    const { symbol, size, color, opacity = 1 } = trace.marker;
    const isOpen = symbol.endsWith("-open");
    const shape = SYMBOLS[symbol.replace("-open", "")] || SYMBOLS.circle;
    trace.x.forEach((x, i) => parts.push(drawing("path", {
      d: shape, transform: `translate(${xOf(x)},${yOf(trace.y[i])}) scale(${size / 2})`, fill: isOpen ? "none" : color, stroke: isOpen ? color : "none",
      "stroke-width": 2.2, "vector-effect": "non-scaling-stroke", opacity,
    })));
  }
  place.replaceChildren(drawing("svg", { width, height, "aria-hidden": "true" }, ...parts));
}

// What all parts of the page draw with. Everything that a study says becomes text, never markup.

const study = JSON.parse(document.getElementById("study").textContent);
const byTrial = new Map(study.trials.map((trial) => [trial.trial, trial]));
const at = (id) => document.getElementById(id);

/** An element with attributes and children; texts are escaped by being texts. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A dotted name that may be broken after its dots and underscores. */
function breakable(name) {
  const parts = name.split(/(?<=[._])/);
  return parts.flatMap((part, index) => (index ? [document.createElement("wbr"), part] : [part]));
}

/** Plotly reads a little markup in its labels. */
const escaped = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
const isNarrow = () => window.innerWidth < 640;
const isTouched = () => window.matchMedia("(pointer: coarse)").matches;

/** A figure of a trial in the words that the other tables use, with its name and unit. */
const head = (figure) => study.heads[figure] || figure;
const written = (trial, figure) => trial.texts[figure] || "";

function hover(trial, figures) {
  const beside = (figure) => (figure === "top1_percent" && trial.accuracy ? ` (95 %: ${trial.accuracy.interval})` : "");
  const lines = figures.filter((figure) => written(trial, figure))
    .map((figure) => `${head(figure)} ${written(trial, figure)}${beside(figure)}`);
  const name = trial.name ? ` (${trial.name})` : "";
  return [`<b>trial ${trial.trial}${escaped(name)}</b>`, escaped(trial.architecture || "no network"),
    ...lines.map(escaped)].join("<br>");
}

// Ticks that read 0.2 and 5, where Plotly's own on a log axis read 2 and 5 of some decade.
function logTicks(low, high, most) {
  for (const steps of [[1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++)
      for (const step of steps) {
        const value = Number((step * 10 ** power).toPrecision(3));
        if (Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9) found.push(value);
      }
    if (found.length <= most && (found.length >= 2 || steps.length === 1)) return found;
  }
  return [];
}

/** Ticks of a range of a log axis; a narrow one has those of a linear axis. */
function ticksOf(range, most = isNarrow() ? 5 : 10) {
  const [low, high] = [Math.min(...range), Math.max(...range)];
  let values = logTicks(low, high, most);
  if (values.length < 4) {
    const [from, to] = [10 ** low, 10 ** high];
    const raw = (to - from) / Math.min(most, 6);
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((times) => times * unit).find((size) => size >= raw);
    const even = [];
    for (let k = Math.ceil(from / step); k * step <= to; k++) even.push(Number((k * step).toPrecision(6)));
    if (even.length > values.length && even.length <= most) values = even;
  }
  return { tickvals: values, ticktext: values.map((value) => value.toLocaleString("en", { maximumSignificantDigits: 4 })) };
}

function logRange(values, share = 0.06) {
  const logs = values.filter((value) => value > 0).map(Math.log10);
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const room = Math.max((high - low) * share, 0.02);
  return [low - room, high + room];
}

const axis = (title) => ({
  title: { text: escaped(title), standoff: 8 }, gridcolor: colour("grid"), linecolor: colour("line"),
  zeroline: false, automargin: true, tickfont: { color: colour("soft") }, showline: true, ticks: "outside",
  tickcolor: colour("line"), fixedrange: isTouched(),
});

const logAxis = (title, values) => {
  const range = logRange(values);
  return { ...axis(title), type: "log", range, ...ticksOf(range) };
};

const layout = (rest) => ({
  paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"), hovermode: "closest",
  font: { color: colour("ink"), family: "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: 13 },
  margin: { l: 8, r: 12, t: isTouched() ? 12 : 36, b: 8 }, // the buttons lie over no point
  dragmode: isTouched() ? false : "zoom",
  legend: { orientation: "h", x: 0, y: -0.16, yanchor: "top", font: { size: 12 } },
  hoverlabel: { align: "left", font: { size: 12, color: colour("ink") }, bgcolor: colour("panel"), bordercolor: colour("line") },
  ...rest,
});

const PLOT = {
  responsive: true, displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};
// Plotly is most of the page and takes a second to read: the page is there before it.
let plotlyIsThere;
const plotly = new Promise((done) => { plotlyIsThere = done; });
function startPlotly() {
  const script = document.createElement("script");
  script.textContent = at("plotly").textContent;
  document.head.append(script);
  at("plotly").remove();
  plotlyIsThere();
}

const drawn = new Map(); // by the picture's id, what draws it anew

/** Draw a picture once it comes near, and again when the theme or the width changes. */
function picture(id, make, now = false) {
  const place = at(id);
  const draw = async () => {
    const isFirst = !drawn.has(id);
    drawn.set(id, draw);
    await plotly;
    if (isFirst) place.replaceChildren(); // a sketch
    const made = make();
    await Plotly.react(place, made.data, layout(made.layout), { ...PLOT, displayModeBar: isTouched() ? false : "hover" });
    if (isFirst) {
      place.on("plotly_relayout", (change) => keepTicks(place, change));
      place.on("plotly_click", (event) => {
        const trial = event.points[0].customdata;
        if (Number.isInteger(trial)) choose(trial, "picture");
      });
    }
  };
  if (drawn.has(id) || now) draw();
  else nearby(place, draw);
}

const waiting = new Set(); // what is drawn once it comes near, or once there is nothing else to do

function nearby(place, action) {
  const once = () => { if (waiting.delete(once)) { watch.disconnect(); action(); } };
  const watch = new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting)) once();
  }, { rootMargin: "400px" });
  waiting.add(once);
  watch.observe(place);
}

const whenIdle = window.requestIdleCallback || ((action) => setTimeout(action, 200));

/** Draw the rest bit by bit, so that the browser finds and prints all of the page. */
function drawRest() {
  const [next] = waiting;
  if (next) { next(); whenIdle(drawRest); }
}
window.addEventListener("beforeprint", () => { for (const next of [...waiting]) next(); });

function keepTicks(place, change) {
  const update = {};
  for (const name of ["xaxis", "yaxis"]) {
    const isMoved = Object.keys(change).some((key) => key.startsWith(`${name}.range`) || key === `${name}.autorange`);
    const now = place._fullLayout[name];
    if (isMoved && now && now.type === "log") {
      const ticks = ticksOf(now.range);
      update[`${name}.tickvals`] = ticks.tickvals;
      update[`${name}.ticktext`] = ticks.ticktext;
    }
  }
  if (Object.keys(update).length) Plotly.relayout(place, update);
}

const redraw = () => { for (const draw of drawn.values()) draw(); };

/** ARIA tabs: arrow keys, Home and End move along them. */
function tabs(place, panel, names, show) {
  const buttons = names.map((name, index) => element("button", {
    type: "button", role: "tab", id: `${place.id}-${index}`, "aria-controls": panel.id,
    onclick: () => select(index),
    onkeydown: (event) => {
      const last = names.length - 1;
      const to = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index === 0 ? last : index - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) { event.preventDefault(); select(to); buttons[to].focus(); }
    },
  }, name));
  function select(index) {
    buttons.forEach((button, other) => {
      button.setAttribute("aria-selected", String(other === index));
      button.tabIndex = other === index ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", buttons[index].id);
    show(index);
  }
  place.replaceChildren(...buttons);
  return select;
}

/** A section that has nothing to show is left out, and so is its place in the list of sections. */
const leaveOut = (id) => at(id).remove();

// Accuracy against each cost.

const up = study.up;
let frontTab = 0;
let walked = -1; // the place on the front that the arrow keys have come to

const scaled = (trial, tab) => trial.values[tab.figure] / tab.scale;
const upwards = (trial) => trial.values[up] / study.up_scale;
const isWhole = (trial) => trial.state === "complete" && trial.reused_from === null;

function frontData(tab) {
  const shown = [...new Set([up, ...study.objectives, tab.figure, "flops", "params"])];
  const has = (trial) => trial.values[tab.figure] !== undefined;
  const points = (name, trials, marker, more = {}) => ({
    type: "scatter", mode: "markers", name, x: trials.map((t) => scaled(t, tab)), y: trials.map(upwards),
    customdata: trials.map((t) => t.trial), text: trials.map((t) => hover(t, shown)),
    hovertemplate: "%{text}<extra></extra>", marker, ...more,
  });
  const whole = study.trials.filter((t) => isWhole(t) && has(t));
  const front = whole.filter((t) => t.on_front);
  const best = tab.front.map((number) => byTrial.get(number));
  const open = (symbol, name, size) => ({ symbol: `${symbol}-open`, size, color: colour(name), line: { width: 2.2, color: colour(name) } });
  const data = [
    { type: "scatter", mode: "lines", name: "best at each cost", x: best.map((t) => scaled(t, tab)), y: best.map(upwards),
      line: { shape: study.up_is_more ? "hv" : "linear", color: colour("front"), width: 1.5 }, hoverinfo: "skip", showlegend: false },
    points("dominated", whole.filter((t) => !t.on_front),
      { symbol: "circle", size: 6, color: colour("faint"), opacity: whole.length > 300 ? 0.35 : 0.5 }),
    points("front", front, { symbol: "circle", size: 10, color: colour("front"), line: { width: 1, color: colour("paper") } }, spreadOf(front, tab)),
  ];
  const stopped = study.trials.filter((t) => t.outcome === "stopped" && t.curve.length && has(t) && up === "top1_percent");
  if (stopped.length) {
    const trace = points("stopped early, at the accuracy then", stopped, { symbol: "x-thin", size: 6, color: colour("stopped"), line: { width: 1.2, color: colour("stopped") } },
      { visible: "legendonly" });
    trace.y = stopped.map((t) => t.curve[t.curve.length - 1][1]);
    data.push(trace);
  }
  const marked = [
    ["to begin with", whole.filter((t) => t.is_start && !t.name && !t.is_reference), open("square", "start", 13)],
    ["reference of latencies", whole.filter((t) => t.is_reference), open("diamond", "reference", 15)],
    ["published, measured here", whole.filter((t) => t.name), open("star", "known", 15)],
  ];
  for (const [name, trials, marker] of marked) if (trials.length) data.push(points(name, trials, marker, name.startsWith("published") ? named(trials, shown, "known") : {}));
  const paper = study.published.filter((p) => p.values[tab.figure] && p.values[up]);
  if (paper.length) data.push({
    type: "scatter", mode: "markers+text", name: "in the paper", textposition: "bottom center", textfont: { color: colour("soft"), size: 10 }, cliponaxis: false,
    customdata: paper.map(() => null), x: paper.map((p) => p.values[tab.figure] / tab.scale),
    y: paper.map((p) => p.values[up]), text: paper.map((p) => escaped(p.name)), hovertext: paper.map((p) => `<b>${escaped(p.name)}</b><br>as published: ${p.values[up]} %, ${+(p.values[tab.figure] / tab.scale).toPrecision(4)} ${tab.unit}`),
    hovertemplate: "%{hovertext}<extra></extra>",
    marker: { symbol: "cross-open", size: 10, color: colour("paper-point"), line: { width: 2, color: colour("paper-point") } },
  });
  const others = study.baselines.filter((b) => b.values[tab.figure] !== undefined && b.values[up] !== undefined);
  if (others.length) data.push({
    type: "scatter", mode: "markers+text", name: "compared with", textposition: "bottom center", textfont: { color: colour("soft"), size: 10 }, cliponaxis: false,
    customdata: others.map(() => null), x: others.map((b) => scaled(b, tab)), y: others.map(upwards), text: others.map((b) => escaped(b.name)),
    hovertext: others.map((b) => [`<b>${escaped(b.name)}</b>`, "compared with", ...shown.filter((figure) => written(b, figure)).map((figure) => escaped(`${head(figure)} ${written(b, figure)}`))].join("<br>")),
    hovertemplate: "%{hovertext}<extra></extra>",
    marker: { symbol: "x", size: 10, color: colour("compared"), line: { width: 1, color: colour("paper") } },
  });
  const picked = byTrial.get(chosenTrial);
  if (picked && isWhole(picked) && has(picked)) data.push({
    ...points("chosen below", [picked], { symbol: "circle-open", size: 20, color: colour("ink"), line: { width: 2.5, color: colour("ink") } }),
    hoverinfo: "skip", hovertemplate: null });
  return data;
}

/** Names beside the points of published networks. */
const named = (trials, figures, of) => ({
  mode: "markers+text", text: trials.map((t) => escaped(t.name.split(" = ")[0])), textposition: "bottom center", textfont: { color: colour(of), size: 11 }, cliponaxis: false,
  hovertext: trials.map((t) => hover(t, figures)), hovertemplate: "%{hovertext}<extra></extra>",
});

/** The intervals of the front's members, where they are known. */
function spreadOf(trials, tab) {
  const bars = (figure, scale, of) => {
    const rows = trials.map((t) => study.details[t.trial]?.figures.find((row) => row.figure === figure));
    if (!rows.some((row) => row && row.low !== null)) return null;
    const away = (end, sign) => rows.map((row) => (row && row[end] !== null ? Math.max(0, sign * (row[end] - row.value) / scale) : 0));
    return { type: "data", symmetric: false, array: away("high", 1), arrayminus: away("low", -1), color: colour(of), thickness: 1, width: 3 };
  };
  const found = {};
  const across = bars(tab.figure, tab.scale, "front");
  const upward = bars(up, study.up_scale, "front");
  if (across) found.error_x = across;
  if (upward) found.error_y = upward;
  return found;
}

function frontPicture() {
  const tab = study.tabs[frontTab];
  const data = frontData(tab);
  const values = data.filter((trace) => trace.visible !== "legendonly").flatMap((trace) => trace.x);
  const reference = tab.reference;
  if (reference) values.push(reference.ms);
  const title = `${tab.title} (${tab.unit}${tab.log ? ", log scale" : ""})`;
  const across = logAxis(title, values);
  const shapes = [], annotations = [];
  if (reference) {
    shapes.push({ type: "line", x0: reference.ms, x1: reference.ms, y0: 0, y1: 1, yref: "paper", line: { color: colour("reference"), width: 1.5, dash: "dash" } });
    annotations.push({ x: Math.log10(reference.ms), y: 0, yref: "paper", yanchor: "bottom", xanchor: Math.log10(reference.ms) > (across.range[0] + across.range[1]) / 2 ? "right" : "left",
      text: "reference", showarrow: false, font: { color: colour("reference"), size: 12 } });
  }
  return { data, layout: { xaxis: across, yaxis: study.up_is_more ? axis(study.up_title) : { ...logAxis(study.up_title, data.flatMap((t) => t.y)) }, shapes, annotations,
    legend: { orientation: "h", x: 0, y: -0.18, yanchor: "top", font: { size: 12 }, itemsizing: "constant" } } };
}

function drawFront() {
  const tab = study.tabs[frontTab];
  const beside = [tab.device, tab.runtime].filter(Boolean).join("; ");
  const reference = tab.reference
    ? `Reference: ${tab.reference.name}, ${tab.reference.text} ms${tab.reference.trial === null ? " (its accuracy is not known here)" : `, trial ${tab.reference.trial}`}.` : "";
  const objective = tab.objective ? "" : "Not an objective of this search: the front marked is that of its objectives, the line what is best at each cost here.";
  at("front-note").textContent = [beside && `Measured on ${beside}.`, reference, objective, up === "top1_percent" && study.verdict.legend, tab.figure.startsWith("latency_ms") && study.latency_legend].filter(Boolean).join(" ");
  at("front-picture").setAttribute("aria-label", `${study.up_title} against ${tab.title}, ${tab.front.length} networks are best at their cost`);
  walked = -1;
  picture("front-picture", frontPicture, true);
}

function walk(event) {
  const order = study.tabs[frontTab].front;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) {
    event.preventDefault();
    walked = Math.min(order.length - 1, Math.max(0, walked < 0 ? (step > 0 ? 0 : order.length - 1) : walked + step));
    point(order[walked]);
  } else if (event.key === "Enter" && walked >= 0) {
    event.preventDefault();
    choose(order[walked], "picture");
  }
}

/** Show the tooltip of a trial, and tell it. */
function point(number) {
  const place = at("front-picture");
  place.data.forEach((trace, curve) => {
    const index = (trace.customdata || []).indexOf(number);
    if (index >= 0 && trace.hoverinfo !== "skip") Plotly.Fx.hover(place, [{ curveNumber: curve, pointNumber: index }]);
  });
  const trial = byTrial.get(number);
  const tab = study.tabs[frontTab];
  at("front-told").textContent = `Trial ${number}: ${head(up)} ${written(trial, up)}, ${head(tab.figure)} ${written(trial, tab.figure)}, ${trial.architecture}`;
}

/** The networks to compare with, in a table of their own. */
function startBaselines() {
  if (!study.baselines.length) return at("baselines").remove();
  const figures = [...new Set([...study.columns, "flops", "params"])].filter((figure) => study.baselines.some((b) => written(b, figure)));
  const ofAccuracy = (figure) => figure === "top1_percent" && study.baselines.some((b) => b.accuracy);
  const heads = ["compared with", ...figures.flatMap((figure) => [head(figure), ...(ofAccuracy(figure) ? ["95 % interval", "vs best"] : [])]), "reason"];
  const cells = (b) => [b.name, ...figures.flatMap((figure) => [written(b, figure), ...(ofAccuracy(figure) ? [b.accuracy?.interval || "", b.accuracy?.vs_best || ""] : [])]), b.reason || ""];
  at("baselines-note").textContent = study.beside_baselines;
  at("baselines-table").append(element("thead", {}, element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...study.baselines.map((b) => element("tr", {}, ...cells(b).map((text, index) => element("td", { class: index && index < heads.length - 1 ? "number" : "" }, text))))));
  return null;
}

function startFront() {
  at("front-title").textContent = `${study.up_name} against cost`;
  const names = study.tabs.map((tab) => tab.title);
  const select = tabs(at("front-tabs"), at("front-panel"), names, (index) => { frontTab = index; drawFront(); });
  at("front-picture").addEventListener("keydown", walk);
  sketch(at("front-picture"), frontPicture());
  select(0);
}

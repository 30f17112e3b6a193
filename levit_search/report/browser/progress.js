// How the search went: the hypervolume by what was spent, and the learning curves.

const SPENT = [
  ["trials", "Trials", "Trials that have ended"],
  ["epochs", "Epochs", "Epochs trained"],
  ["hours", "Hours", "Hours (without pauses)"],
  ["worker_hours", "Worker hours", "Hours, summed over workers"],
].filter(([name]) => study.trajectory[name].every((value) => value !== null)
  && study.trajectory[name][study.trajectory[name].length - 1] > 0);
let spentTab = 0;

function progressPicture() {
  const [name, , title] = SPENT[spentTab];
  const { trajectory } = study;
  const volumes = trajectory.hypervolume;
  const spent = trajectory[name];
  const early = volumes.filter((_, i) => spent[i] <= spent[spent.length - 1] / 20);
  const low = Math.max(0, ...early), high = volumes[volumes.length - 1];
  const room = (high - low) / 15;
  return {
    data: [{ type: "scatter", mode: "lines+markers", x: spent, y: volumes, line: { shape: "hv", color: colour("front"), width: 2 }, marker: { size: 5, color: colour("front") },
      hovertemplate: `hypervolume %{y:.4f}<br>${title.toLowerCase()} %{x:.4~g}<extra></extra>` }],
    layout: { xaxis: { ...axis(title), rangemode: "tozero" }, yaxis: { ...axis("Hypervolume"), tickformat: high - low < 0.05 ? ".3f" : ".2f", ...(low > 0 && high > low ? { range: [low - room, high + room] } : {}) }, showlegend: false },
  };
}

function startProgress() {
  if (study.summary.hypervolume === null) {
    at("progress-tabs").remove();
    at("progress-picture").remove();
    at("progress-note").textContent = "This study has no reference for hypervolumes yet, nor a knee: the next levit-search run finds it.";
    return;
  }
  const select = tabs(at("progress-tabs"), at("progress-panel"), SPENT.map(([, name]) => name), (index) => { spentTab = index; picture("progress-picture", progressPicture); });
  at("progress-note").textContent = `What the front dominates, of accuracy as a share and costs on a decimal log scale, from ${study.reference_point}; larger is better. `
    + "The first networks bring most of it: where they do, the axis begins after a twentieth of the search.";
  select(0);
}

const hasCurve = study.trials.filter((t) => t.curve.length);

function curvesPicture() {
  const faint = Math.max(0.35, Math.min(0.85, 30 / hasCurve.length)); // many lie on each other
  const groups = [
    ["stopped at a rung", hasCurve.filter((t) => t.outcome === "stopped"), "stopped", 1, faint],
    ["trained to the end", hasCurve.filter((t) => t.outcome !== "stopped" && !t.on_front), "faint", 1, faint],
    ["front", hasCurve.filter((t) => t.on_front), "front", 1.6, 0.95],
    ["chosen above", hasCurve.filter((t) => t.trial === chosenTrial), "ink", 3, 1],
  ];
  const data = groups.filter(([, trials]) => trials.length).map(([name, trials, of, width, opacity]) => {
    const trace = { type: "scatter", mode: "lines+markers", name: name === "chosen above" ? name : `${name} (${trials.length})`, x: [], y: [], text: [], customdata: [], opacity,
      line: { color: colour(of), width, dash: of === "stopped" ? "dot" : "solid" }, marker: { size: width > 1 ? 5 : 3, color: colour(of) }, hovertemplate: "%{text}<br>epoch %{x}: %{y:.2f} %<extra></extra>" };
    for (const trial of trials) {
      const text = hover(trial, study.objectives);
      for (const [epoch, percent] of trial.curve) { trace.x.push(epoch); trace.y.push(percent); trace.text.push(text); trace.customdata.push(trial.trial); }
      trace.x.push(null); trace.y.push(null); trace.text.push(""); trace.customdata.push(null);
    }
    return trace;
  });
  const rungs = study.summary.rungs ? study.summary.rungs.rungs : [];
  const last = Math.max(...hasCurve.flatMap((t) => t.curve.map(([epoch]) => epoch)));
  return { data, layout: {
    xaxis: { ...axis("Epoch"), ...(last <= 12 ? { dtick: 1 } : {}) }, yaxis: axis("Validation top-1 accuracy (%)"),
    margin: { l: 8, r: 12, t: rungs.length || !isTouched() ? 40 : 12, b: 8 },
    shapes: rungs.map((rung) => ({ type: "line", x0: rung.epoch, x1: rung.epoch, y0: 0, y1: 1, yref: "paper", line: { color: colour("line"), width: 1, dash: "dash" } })),
    annotations: rungs.map((rung) => ({ x: rung.epoch, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, xanchor: rung.epoch < last / 3 ? "left" : "center",
      text: isNarrow() ? `${rung.went_on}/${rung.came}` : `${rung.went_on} of ${rung.came} went on`, font: { size: 12, color: colour("soft") } })),
  } };
}

function startCurves() {
  if (!hasCurve.length) return leaveOut("curves");
  const saved = study.summary.rungs;
  at("curves-note").textContent = saved
    ? `${saved.stopped} of ${saved.trained} networks were stopped at a rung, which saved ${saved.saved_percent.toFixed(0)} % of the epochs of training all of them to the end (about ${saved.hours_saved.toPrecision(2)} worker hours).`
    : "This search had no rungs: all networks were trained to the end.";
  picture("curves-picture", curvesPicture);
  return null;
}

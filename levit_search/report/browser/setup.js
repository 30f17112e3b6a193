// Predictions, what came to nothing, and how the study was made.

function predictionPicture() {
  const values = study.prediction.flatMap(([predicted, measured]) => [predicted, measured]);
  const { range } = logAxis("", values);
  const ends = range.map((end) => 10 ** end);
  const trials = study.prediction.map(([, , number]) => byTrial.get(number));
  return {
    data: [
      { type: "scatter", mode: "lines", x: ends, y: ends, name: "as predicted", hoverinfo: "skip", line: { color: colour("line"), width: 1.5, dash: "dash" } },
      { type: "scatter", mode: "markers", name: "networks", x: study.prediction.map(([predicted]) => predicted), y: study.prediction.map(([, measured]) => measured),
        customdata: trials.map((t) => t.trial), text: trials.map((t) => hover(t, ["latency_predicted_ms", "latency_ms", "prediction_error_percent"])), hovertemplate: "%{text}<extra></extra>",
        marker: { size: 9, color: colour("front"), line: { width: 1, color: colour("paper") } } },
    ],
    layout: { xaxis: logAxis("Predicted latency (ms, log scale)", values), yaxis: logAxis("Measured latency (ms, log scale)", values) },
  };
}

function startPrediction() {
  const found = study.summary.prediction;
  if (!study.prediction.length || !found) return leaveOut("prediction");
  const slow = found.mean_percent > 0 ? "slow" : "fast";
  at("prediction-note").textContent = `${found.networks} networks were predicted, then measured. Predictions were ${found.mean_abs_percent.toFixed(1)} % off in the mean, ${found.worst_abs_percent.toFixed(1)} % at worst, and ${Math.abs(found.mean_percent).toFixed(1)} % too ${slow} on the whole.`;
  picture("prediction-picture", predictionPicture);
  return null;
}

function startFailures() {
  const { failures } = study;
  if (!failures.length) {
    at("failures-body").append(element("p", { class: "soft" }, "No trial failed, and no proposal broke a limit."));
    return;
  }
  const rows = failures.map((group) => element("tr", {}, element("td", { class: "number" }, String(group.count)), element("td", { class: "nowrap" }, group.outcome), element("td", {}, group.reason),
    element("td", {}, `${group.trials.slice(0, 8).join(", ")}${group.count > 8 ? ", …" : ""}`)));
  at("failures-body").append(element("div", { class: "wide", tabindex: "0", role: "region", "aria-labelledby": "failures-title" }, element("table", {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col", class: "number" }, "trials"), ...["outcome", "reason", "which"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows))));
}

function terms(rows) {
  return element("dl", {}, ...rows.filter(([, text]) => text !== null && text !== undefined && text !== "").flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, String(text))]));
}

function startSetup() {
  const { data, environment } = study;
  const names = data.class_names ? `: ${data.class_names.slice(0, 60).join(", ")}${data.class_names.length > 60 ? ", …" : ""}` : "";
  const body = at("setup-body");
  body.append(terms([
    ["data", `${data.name}${data.root ? ` (${data.root})` : ""}, ${[data.channels, data.image_size, data.image_size].flat().slice(0, 3).join(" x ")}`],
    ["classes", `${data.classes}${names}`],
    ...(data.survey ?? []).map((line, place) => [place ? "" : "what is in it", line]),
    ["objectives", study.objectives.map((name) => study.names[name]).join(", ")],
    ["search", study.search_text], ["training", study.training_text],
    ...study.tabs.filter((tab) => tab.device).map((tab) => [tab.title.toLowerCase(), `${tab.device}; ${tab.runtime}`]),
  ]));
  const { sessions } = environment;
  if (!sessions.length) body.append(element("p", { class: "soft" }, "Where it ran was not noted (environment.json is missing)."));
  sessions.forEach((session, index) => body.append(
    element("h3", {}, sessions.length > 1 ? `Session ${index + 1} of ${sessions.length}` : "Command"),
    element("pre", { tabindex: "0" }, session.command_text),
    terms([["started", session.started], ["machine", [session.host, session.cpu, session.cores && `${session.cores} cores`, session.machine].filter(Boolean).join(", ")], ["system", session.system], ["python", session.python],
      ["packages", session.packages && Object.entries(session.packages).map(([name, version]) => `${name} ${version}`).join(", ")], ["revision", session.revision]])));
  body.append(element("details", {}, element("summary", {}, "Space, recipe and search in full"), element("pre", { tabindex: "0" }, study.settings_text)));
}

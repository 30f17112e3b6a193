// What reacts in the page. All figures are drawn already; what a study says becomes text, never markup.
"use strict";
(() => {
const study = JSON.parse(document.getElementById("study").textContent);
const byTrial = new Map(study.trials.map((trial) => [trial.trial, trial]));
const { up } = study;
const at = (id) => document.getElementById(id);
const asked = () => Number(/^#trial-(\d+)$/.exec(location.hash)?.[1] ?? NaN);
let chosenTrial = byTrial.has(asked()) ? asked() : study.chosen[0];

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

const paragraph = (text) => element("p", { class: "soft" }, text);
const heads = (names, more = {}) => names.map((name) => element("th", { scope: "col", ...more }, name));
const table = (titles, rows) => [element("thead", {}, element("tr", {}, ...titles)), element("tbody", {}, ...rows)];
const terms = (rows) => element("dl", {}, ...rows.filter(([, text]) => text !== null && text !== undefined && text !== "")
  .flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, String(text))]));

/** A figure of a trial in the words that the other tables use, with its name and unit. */
const head = (figure) => study.heads[figure] || figure;
const written = (trial, figure) => trial.texts[figure] || "";
const isWhole = (trial) => trial.state === "complete" && trial.reused_from === null;

// Figures: what is pointed at, what is chosen, what is hidden.

/** The marks of a figure, each with the places that it goes through, in the figure's own units. */
const places = new WeakMap();
function marksOf(svg) {
  if (!places.has(svg)) places.set(svg, [...svg.querySelectorAll("[data-trial], [data-tip]")].map((mark) => {
    const text = mark.getAttribute("transform") ?? mark.getAttribute("d");
    return { mark, points: (text.match(/-?[\d.]+,-?[\d.]+/g) ?? []).map((pair) => pair.split(",").map(Number)) };
  }));
  return places.get(svg);
}

/** The mark next to a place on the screen, if one is near. */
function nearest(event) {
  const svg = event.target.closest("svg");
  if (!svg) return null;
  const matrix = svg.getScreenCTM();
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  let [found, least] = [null, (22 / matrix.a) ** 2];
  for (const { mark, points } of marksOf(svg)) {
    if (mark.style.display === "none" || mark.parentNode.getAttribute("display") === "none") continue;
    for (const [px, py] of points) {
      const away = (px - x) ** 2 + (py - y) ** 2;
      if (away < least) [found, least] = [{ mark, at: new DOMPoint(px, py).matrixTransform(matrix) }, away];
    }
  }
  return found;
}

function detailsOf(mark, figures) {
  if (mark.dataset.tip) return mark.dataset.tip;
  const trial = byTrial.get(Number(mark.dataset.trial));
  const beside = (figure) => (figure === study.verdict.figure && trial.accuracy ? ` (95 %: ${trial.accuracy.interval})` : "");
  return [`trial ${trial.trial}${trial.name ? ` (${trial.name})` : ""}`, trial.architecture || "no network",
    ...figures.filter((figure) => written(trial, figure)).map((figure) => `${head(figure)} ${written(trial, figure)}${beside(figure)}`)].join("\n");
}

function showTip(found, figures) {
  const tip = at("tip");
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = detailsOf(found.mark, figures);
  const left = Math.min(found.at.x + 12, document.documentElement.clientWidth - tip.offsetWidth - 4);
  tip.style.left = `${Math.max(4, left) + scrollX}px`;
  tip.style.top = `${found.at.y + scrollY - tip.offsetHeight - 10}px`;
}

/** Show what is pointed at, choose what is pressed; names in the legend hide and show their points. */
function startFigure(place, figures) {
  place.addEventListener("pointermove", (event) => showTip(nearest(event), figures()));
  place.addEventListener("pointerleave", () => showTip(null));
  place.addEventListener("click", (event) => {
    const entry = event.target.closest("[data-entry]");
    if (entry) {
      for (const group of entry.closest("svg").querySelectorAll("[data-series]")) if (group.dataset.series === entry.dataset.entry) {
        const isOff = entry.classList.toggle("off", !group.hasAttribute("display"));
        if (isOff) group.setAttribute("display", "none"); else group.removeAttribute("display");
      }
      return;
    }
    const found = nearest(event);
    if (found?.mark.dataset.trial) choose(Number(found.mark.dataset.trial), "picture");
  });
  for (const group of place.querySelectorAll("[data-series][display]"))
    for (const entry of group.closest("svg").querySelectorAll("[data-entry]")) if (entry.dataset.entry === group.dataset.series) entry.classList.add("off");
}

/** The chosen network is ringed, its lines are strong and over the others. */
function markChosen() {
  for (const old of document.querySelectorAll(".ring")) old.remove();
  for (const old of document.querySelectorAll(".picture .chosen")) old.classList.remove("chosen");
  for (const mark of document.querySelectorAll(`.picture [data-trial="${chosenTrial}"]`)) {
    if (mark.hasAttribute("d")) {
      mark.classList.add("chosen");
      const front = mark.closest("#lines-picture") ? mark : mark.parentNode;
      front.parentNode.append(front);
    } else if (mark.closest("#front-picture, #int8")) {
      const ring = document.createElementNS(mark.namespaceURI, "circle");
      for (const [name, value] of Object.entries({ class: "ring", r: 12, transform: mark.getAttribute("transform") })) ring.setAttribute(name, value);
      mark.closest("svg").append(ring);
    }
  }
}

/** ARIA tabs: arrow keys, Home and End move along them. */
function tabs(place, panel, names, show) {
  const charts = panel.querySelectorAll(".chart");
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
      charts[other].hidden = other !== index;
    });
    panel.setAttribute("aria-labelledby", buttons[index].id);
    show(index);
  }
  place.replaceChildren(...buttons);
  if (names.length) select(0);
}

// Accuracy against each cost.

let frontTab = 0;
let walked = -1; // the place on the front that the arrow keys have come to

function showFront(index) {
  const tab = study.tabs[index];
  [frontTab, walked] = [index, -1];
  at("front-note").textContent = tab.note;
  at("front-picture").setAttribute("aria-label", `${study.up_name} against ${tab.title}, ${tab.front.length} networks are best at their cost`);
}

function walk(event) {
  const tab = study.tabs[frontTab];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) {
    event.preventDefault();
    walked = Math.min(tab.front.length - 1, Math.max(0, walked < 0 ? (step > 0 ? 0 : tab.front.length - 1) : walked + step));
    const trial = byTrial.get(tab.front[walked]);
    const mark = [...document.querySelectorAll(`#front-picture .chart:not([hidden]) [data-trial="${trial.trial}"]`)].find((each) => each.getClientRects().length);
    if (mark) {
      const box = mark.getBoundingClientRect();
      showTip({ mark, at: { x: box.x + box.width / 2, y: box.y } }, [up, tab.figure]);
    }
    at("front-told").textContent = `Trial ${trial.trial}: ${head(up)} ${written(trial, up)}, ${head(tab.figure)} ${written(trial, tab.figure)}, ${trial.architecture}`;
  } else if (event.key === "Enter" && walked >= 0) {
    event.preventDefault();
    choose(tab.front[walked], "picture");
  }
}

/** The networks to compare with, in a table of their own. */
function startBaselines() {
  const { baselines } = study;
  if (!baselines.length) { at("baselines").remove(); return; }
  const columns = [...new Set([...study.columns, "flops", "params"])].filter((figure) => baselines.some((b) => written(b, figure)))
    .flatMap((figure) => [[head(figure), (b) => written(b, figure)],
      ...(figure === study.verdict.figure && baselines.some((b) => b.accuracy) ? [["95 % interval", (b) => b.accuracy?.interval], ["vs best", (b) => b.accuracy?.vs_best]] : [])]);
  at("baselines-note").textContent = study.beside_baselines;
  at("baselines-table").append(...table(heads(["compared with", ...columns.map(([name]) => name), "reason"]), baselines.map((b) => element("tr", {},
    element("td", {}, b.name), ...columns.map(([, text]) => element("td", { class: "number" }, text(b) || "")), element("td", {}, b.reason || "")))));
}

// One network in detail, whichever was chosen.

/** Show a network. From the table the page goes there, from a picture it stays. */
function choose(number, from) {
  if (!byTrial.has(number)) return;
  chosenTrial = number;
  showNetwork();
  for (const row of at("trials-table").tBodies[0].rows) row.setAttribute("aria-selected", String(Number(row.dataset.trial) === number));
  try { history.replaceState(null, "", `#trial-${number}`); } catch { /* not allowed for this file */ }
  if (from === "table") {
    at("network-title").focus({ preventScroll: true });
    at("network").scrollIntoView();
  }
}

function showNetwork() {
  const trial = byTrial.get(chosenTrial);
  const details = study.details[chosenTrial];
  at("network-title").textContent = `Network of trial ${trial.trial}${trial.name ? `, ${trial.name}` : ""}`;
  const place = study.chosen.indexOf(chosenTrial);
  at("network-choice").value = place < 0 ? "" : String(chosenTrial);
  at("network-before").disabled = place === 0;
  at("network-next").disabled = place === study.chosen.length - 1;
  const badges = [["", trial.outcome], ["front", trial.on_front && "front"], ["start", trial.is_start && "to begin with"], ["reference", trial.is_reference && "reference"],
    ["known", trial.name && "published"], ["front", details?.picked_as.includes("knee of the front") && "knee"]];
  at("network-body").replaceChildren(
    element("p", {}, element("strong", {}, trial.architecture || "no valid network"), ...badges.filter(([, text]) => text).flatMap(([name, text]) => [" ", element("span", { class: `badge ${name}` }, text)])),
    trial.reason ? element("p", { class: "notice" }, trial.reason) : "",
    element("div", { class: "cards" }, element("div", {}, figuresTable(trial, details), besideFloat(details), choicesList(trial),
      details ? element("details", {}, element("summary", {}, "Its description, as architecture.yaml has it"), element("pre", { tabindex: "0" }, details.yaml)) : null), ...drawings(trial, details)));
  markChosen();
}

function figuresTable(trial, details) {
  const rows = (details ? details.figures : Object.keys(trial.texts).map((figure) => ({ figure }))).map((row) => [head(row.figure), row.text || written(trial, row.figure), row.spread || ""]);
  if (trial.outcome === "stopped" && trial.curve.length) {
    const [epoch, percent] = trial.curve[trial.curve.length - 1];
    rows.push([`top-1 % at epoch ${epoch}`, percent.toFixed(2), "not trained to the end"]);
  }
  if (trial.reused_from !== null) rows.push(["known from", `trial ${trial.reused_from}`, ""]);
  rows.push(["seconds", String(trial.seconds), "to evaluate it"]);
  return element("table", { class: "figures" }, element("caption", { hidden: true }, "Figures with their spread"), ...table(heads(["figure", "value", "spread"]),
    rows.map(([name, value, spread]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: "number" }, value), element("td", { class: "soft" }, spread)))));
}

/** The same network in float and in int8. */
function besideFloat(details) {
  if (!details?.int8) return null;
  const rows = details.int8.rows.map(([name, ...cells]) => element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", { class: "number" }, cell))));
  return element("div", {}, element("h3", {}, "In float and in int8"), element("table", { id: "beside-float" }, ...table(heads(["figure", "float", "int8", "change"]), rows)), paragraph(details.int8.text));
}

function choicesList(trial) {
  if (!trial.choices) return null;
  const rows = Object.entries(study.slots).map(([slot, values], index) => [slot, trial.choices[index] === null ? null : JSON.stringify(values[trial.choices[index]])]);
  return element("details", {}, element("summary", {}, "Its choices"), terms(rows));
}

/** The drawings come from levit-search itself, whose texts are escaped where they are made. */
function drawings(trial, details) {
  if (!trial.architecture) return [paragraph("There is no network to draw.")];
  if (!details) return [element("p", { class: "soft" }, "Diagrams are made for the front, known networks and those that are picked: ",
    element("code", {}, `levit-search report ${study.folder} --pick trial=${trial.trial}`))];
  const found = [["Blocks, with what each costs", details.diagram], ["Its trained weights", details.maps]].filter(([, svg]) => svg).map(([title, svg]) => {
    const box = element("div", { class: "network-view" });
    box.innerHTML = svg;
    return element("div", {}, element("h3", {}, title), box);
  });
  return details.note ? [...found, paragraph(details.note)] : found;
}

function startNetwork() {
  const list = at("network-choice");
  list.append(element("option", { value: "", disabled: true, hidden: true }, "another trial"), ...study.chosen.map((number) => {
    const text = written(byTrial.get(number), up);
    return element("option", { value: String(number) }, `trial ${number}: ${text ? `${text} ${study.up_unit}, ` : ""}${study.details[number].picked_as.join(", ")}`);
  }));
  list.addEventListener("change", () => choose(Number(list.value), "list"));
  const step = (by) => () => choose(study.chosen[Math.max(0, study.chosen.indexOf(chosenTrial)) + by], "list");
  at("network-before").addEventListener("click", step(-1));
  at("network-next").addEventListener("click", step(1));
}

// The table of trials.

const PAGE = 200; // rows that are made at once
let order = { key: null, descending: false };
let rowsShown = PAGE;

const ACCURACY = study.trials.some((t) => t.accuracy) ? [
  { key: "interval", title: "95 % interval", of: (t) => t.accuracy?.low, text: (t) => t.accuracy?.interval || "", number: true },
  { key: "vs_best", title: "vs best", of: (t) => t.accuracy?.vs_best || "" },
] : [];

const COLUMNS = [
  { key: "trial", title: "trial", of: (t) => t.trial, number: true },
  ...study.columns.flatMap((figure) => [{ key: figure, title: head(figure), of: (t) => t.values[figure], text: (t) => written(t, figure), number: true, isMore: /^top1|drop/.test(figure) },
    ...(figure === study.verdict.figure ? ACCURACY : [])]),
  { key: "architecture", title: "architecture", of: (t) => t.architecture || "" },
  { key: "outcome", title: "outcome", of: (t) => (t.on_front ? "front" : t.outcome) },
  { key: "name", title: "known as", of: (t) => [t.name, t.is_reference && "reference", t.is_start && "to begin with"].filter(Boolean).join(", ") },
  { key: "seconds", title: "seconds", of: (t) => t.seconds, number: true },
  { key: "reason", title: "reason", of: (t) => t.reason || (t.reused_from !== null ? `known from trial ${t.reused_from}` : "") },
];

const SHOWN = {
  "all but repeats": (t) => t.outcome !== "repeat",
  "all": () => true,
  "the front": (t) => t.on_front,
  "trained to the end": (t) => isWhole(t),
};

function filtered() {
  const text = at("trials-text").value.trim().toLowerCase();
  const keeps = SHOWN[at("trials-outcome").value] || ((t) => t.outcome === at("trials-outcome").value);
  const matches = (t) => !text || [t.trial, t.id, t.architecture, t.name, t.outcome, t.reason].some((part) => part !== null && String(part).toLowerCase().includes(text));
  const found = study.trials.filter((t) => keeps(t) && matches(t));
  const column = COLUMNS.find((each) => each.key === order.key);
  if (!column) return found;
  const sign = order.descending ? -1 : 1;
  const isUnknown = (value) => value === undefined || value === "";
  return found.sort((a, b) => {
    const [left, right] = [column.of(a), column.of(b)];
    if (isUnknown(left) || isUnknown(right)) return isUnknown(left) - isUnknown(right); // last in both orders
    return sign * (column.number ? left - right : left.localeCompare(right, "en", { numeric: true })) || a.trial - b.trial;
  });
}

function showTrials() {
  const found = filtered();
  const rows = found.slice(0, rowsShown).map((trial) => element("tr", {
    tabindex: "0", "data-trial": trial.trial, "aria-selected": String(trial.trial === chosenTrial),
    onclick: () => choose(trial.trial, "table"), onkeydown: rowKey,
  }, ...COLUMNS.map((column) => element("td", { class: column.number ? "number" : column.key }, column.text ? column.text(trial) : String(column.of(trial))))));
  at("trials-table").tBodies[0].replaceChildren(...rows);
  at("trials-count").textContent = `${found.length} of ${study.trials.length}`;
  const more = at("trials-more");
  more.hidden = found.length <= rowsShown;
  more.textContent = `Show ${Math.min(PAGE, found.length - rowsShown)} more of ${found.length - rowsShown}`;
}

function rowKey(event) {
  const row = event.currentTarget;
  const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
  if (next) { event.preventDefault(); next.focus(); }
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(Number(row.dataset.trial), "table"); }
}

function sortBy(column) {
  const isSame = order.key === column.key;
  order = { key: column.key, descending: isSame ? !order.descending : Boolean(column.isMore) };
  for (const cell of at("trials-table").tHead.rows[0].cells) {
    const isSorted = cell.dataset.key === order.key;
    cell.setAttribute("aria-sort", isSorted ? (order.descending ? "descending" : "ascending") : "none");
    cell.querySelector("span").textContent = isSorted ? (order.descending ? " ▼" : " ▲") : "";
  }
  showTrials();
}

function startTrials() {
  at("trials-table").append(...table(COLUMNS.map((column) => element("th", { scope: "col", "data-key": column.key, "aria-sort": "none", class: column.number ? "number" : "" },
    element("button", { type: "button", onclick: () => sortBy(column) }, column.title, element("span", { "aria-hidden": "true" })))), []));
  const outcomes = [...new Set(study.trials.map((t) => t.outcome))].filter((name) => name !== "complete");
  at("trials-outcome").append(...[...Object.keys(SHOWN), ...outcomes].map((name) => element("option", {}, name)));
  const again = () => { rowsShown = PAGE; showTrials(); };
  at("trials-text").addEventListener("input", again);
  at("trials-outcome").addEventListener("change", again);
  at("trials-more").addEventListener("click", () => {
    const first = rowsShown;
    rowsShown += PAGE;
    showTrials();
    at("trials-table").tBodies[0].rows[first]?.focus();
  });
  showTrials();
}

// Networks as lines through their choices: which are kept, and what colours them.

const lined = study.trials.filter((t) => isWhole(t) && t.choices);
const kept = new Map(); // by slot, the values that are asked for, -1 for none

function showLines() {
  const matching = new Set(lined.filter((t) => [...kept].every(([slot, values]) => values.has(t.choices[slot] ?? -1))).map((t) => t.trial));
  const figure = Object.keys(study.lines)[at("lines-figure").selectedIndex];
  const { shades, ends } = study.lines[figure];
  for (const line of at("lines-picture").querySelectorAll("[data-trial]")) {
    line.style.display = matching.has(Number(line.dataset.trial)) ? "" : "none";
    line.style.color = `var(--shade-${shades[line.dataset.trial]})`;
  }
  for (const value of at("lines-picture").querySelectorAll("[data-slot]"))
    value.setAttribute("aria-pressed", String(Boolean(kept.get(Number(value.dataset.slot))?.has(Number(value.dataset.value)))));
  at("lines-count").textContent = `${matching.size} of ${lined.length} networks`;
  at("lines-clear").disabled = kept.size === 0;
  at("lines-scale").replaceChildren(`${head(figure)} ${ends[0]}`, element("i"), ends[1]);
}

function startLines() {
  const values = at("lines-picture").querySelectorAll("[data-slot]");
  if (!values.length) { at("lines").remove(); return; }
  at("lines-figure").append(...Object.keys(study.lines).map((figure) => element("option", {}, head(figure))));
  at("lines-figure").addEventListener("change", showLines);
  at("lines-clear").addEventListener("click", () => { kept.clear(); showLines(); });
  for (const svg of at("lines-picture").querySelectorAll("svg")) svg.setAttribute("role", "group");
  for (const value of values) {
    const press = (event) => {
      event.preventDefault();
      event.stopPropagation();
      const [slot, place] = [Number(value.dataset.slot), Number(value.dataset.value)];
      const places = kept.get(slot) ?? new Set();
      if (!places.delete(place)) places.add(place);
      if (places.size) kept.set(slot, places); else kept.delete(slot);
      showLines();
    };
    for (const [name, text] of Object.entries({ role: "button", tabindex: "0", "aria-label": value.dataset.label })) value.setAttribute(name, text);
    value.addEventListener("click", press);
    value.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") press(event); });
  }
  showLines();
}

// What came to nothing, and how the study was made.

function startFailures() {
  const { failures } = study;
  const body = at("failures-body");
  if (!failures.length) { body.append(paragraph("No trial failed, and no proposal broke a limit.")); return; }
  body.append(element("div", { class: "wide", tabindex: "0", role: "region", "aria-labelledby": "failures-title" }, element("table", {}, ...table(
    [...heads(["trials"], { class: "number" }), ...heads(["outcome", "reason", "which"])],
    failures.map((group) => element("tr", {}, element("td", { class: "number" }, String(group.count)), element("td", { class: "nowrap" }, group.outcome), element("td", {}, group.reason),
      element("td", {}, `${group.trials.slice(0, 8).join(", ")}${group.count > 8 ? ", …" : ""}`)))))));
}

function startSetup() {
  const { data, environment: { sessions } } = study;
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
  if (!sessions.length) body.append(paragraph("Where it ran was not noted (environment.json is missing)."));
  sessions.forEach((session, index) => body.append(
    element("h3", {}, sessions.length > 1 ? `Session ${index + 1} of ${sessions.length}` : "Command"),
    element("pre", { tabindex: "0" }, session.command_text ?? ""),
    terms([["started", session.started], ["machine", [session.host, session.cpu, session.cores && `${session.cores} cores`, session.machine].filter(Boolean).join(", ")], ["system", session.system], ["python", session.python],
      ["packages", session.packages && Object.entries(session.packages).map(([name, version]) => `${name} ${version}`).join(", ")], ["revision", session.revision]])));
  body.append(element("details", {}, element("summary", {}, "Space, recipe and search in full"), element("pre", { tabindex: "0" }, study.settings_text)));
}

// The page as a whole.

function startTheme() {
  const button = at("theme");
  const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  let stored = null;
  try { stored = localStorage.getItem("levit-search-theme"); } catch { /* files may have no storage */ }
  if (stored === "dark" || stored === "light") document.documentElement.dataset.theme = stored;
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("levit-search-theme", theme); } catch { /* as above */ }
    show();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

function startSummary() {
  const { text, advice } = study.verdict; // what the accuracies are worth, before anything else where that is little
  if (!text) at("verdict").remove();
  else at("verdict").append(element("p", {}, text), ...(advice.length ? [element("p", {}, "What to try, each in another study:"), element("ul", {}, ...advice.map((each) => element("li", {}, each)))] : []));
  const { counts, front, trials, hours, worker_hours: workerHours, hypervolume } = study.summary;
  const parts = Object.entries(counts).filter(([, count]) => count).map(([name, count]) => `${count} ${name}`);
  const spent = hours !== null ? `${hours.toPrecision(3)} hours` : `${workerHours.toPrecision(3)} worker hours`;
  at("summary").textContent = `${trials} trials (${parts.join(", ")}) in ${spent}; ${front} ${front === 1 ? "network" : "networks"} on the front${hypervolume === null ? "" : `, hypervolume ${hypervolume.toFixed(4)}`}. Made ${study.made.slice(0, 16).replace("T", " ")} UTC.`;
  at("folder").textContent = study.folder;
  for (const section of document.querySelectorAll("main > section")) {
    if (section.querySelector(".picture:empty") && !section.querySelector(".keep")) section.remove();
    else at("sections").append(element("li", {}, element("a", { href: `#${section.id}` }, section.id === "network" ? "Network" : section.querySelector("h2").textContent)));
  }
}

startTheme();
at("front-title").textContent = `${study.up_name} against cost`;
tabs(at("front-tabs"), at("front-panel"), study.tabs.map((tab) => tab.title), showFront);
tabs(at("progress-tabs"), at("progress-panel"), study.spent, () => {});
at("front-picture").addEventListener("keydown", walk);
startBaselines();
startNetwork();
startTrials();
startLines();
startFailures();
startSetup();
startSummary();
for (const place of document.querySelectorAll(".picture"))
  startFigure(place, () => [...new Set([up, ...study.objectives, ...(place.id === "front-picture" ? [study.tabs[frontTab].figure, "flops", "params"] : place.id.startsWith("int8") ? study.int8.figures : study.columns.filter((name) => place.id === "prediction-picture" && /predict|latency_ms$/.test(name)))])]);
showNetwork();
requestAnimationFrame(() => setTimeout(() => { performance.mark("first-picture"); performance.mark("interactive"); }));
if (byTrial.has(asked())) at("network").scrollIntoView();
window.addEventListener("hashchange", () => choose(asked(), "table"));
})();

// One network in detail, whichever was chosen.

let chosenTrial = study.chosen[0];

/** Show a network. From the table the page goes there, from a picture it stays. */
function choose(number, from) {
  if (!byTrial.has(number)) return;
  chosenTrial = number;
  showNetwork();
  markRow();
  if (drawn.has("front-picture")) picture("front-picture", frontPicture);
  if (drawn.has("curves-picture")) picture("curves-picture", curvesPicture);
  markLine();
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
  const body = at("network-body");
  const notice = trial.reason ? [element("p", { class: "notice" }, trial.reason)] : [];
  body.replaceChildren(
    element("p", {}, element("strong", {}, trial.architecture || "no valid network"), " ", ...badges(trial)),
    ...notice,
    element("div", { class: "cards" },
      element("div", {}, figuresTable(trial, details), choicesList(trial), details ? description(details) : null),
      ...(details ? sheets(details) : [element("div", {}, noSheets(trial))])));
}

function badges(trial) {
  const found = [element("span", { class: "badge" }, trial.outcome)];
  if (trial.on_front) found.push(element("span", { class: "badge front" }, "front"));
  if (trial.is_start) found.push(element("span", { class: "badge start" }, "to begin with"));
  if (trial.is_reference) found.push(element("span", { class: "badge reference" }, "reference"));
  if (trial.name) found.push(element("span", { class: "badge known" }, "published"));
  const knee = study.details[trial.trial]?.picked_as.includes("knee of the front");
  if (knee) found.push(element("span", { class: "badge front" }, "knee"));
  return found.flatMap((badge) => [badge, " "]);
}

function figuresTable(trial, details) {
  const rows = details ? details.figures : Object.keys(trial.texts).map((figure) => ({ figure, spread: null }));
  const listed = rows.map((row) => element("tr", {},
    element("th", { scope: "row" }, head(row.figure)),
    element("td", { class: "number" }, row.text || written(trial, row.figure)),
    element("td", { class: "soft" }, row.spread || "")));
  if (trial.outcome === "stopped" && trial.curve.length) {
    const [epoch, percent] = trial.curve[trial.curve.length - 1];
    listed.push(element("tr", {}, element("th", { scope: "row" }, `top-1 % at epoch ${epoch}`), element("td", { class: "number" }, percent.toFixed(2)), element("td", { class: "soft" }, "not trained to the end")));
  }
  if (trial.reused_from !== null) listed.push(element("tr", {}, element("th", { scope: "row" }, "known from"), element("td", {}, `trial ${trial.reused_from}`), element("td", {})));
  listed.push(element("tr", {}, element("th", { scope: "row" }, "seconds"), element("td", { class: "number" }, String(trial.seconds)), element("td", { class: "soft" }, "to evaluate it")));
  return element("table", { class: "figures" },
    element("caption", { hidden: true }, "Figures with their spread"),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "figure"), element("th", { scope: "col", class: "number" }, "value"), element("th", { scope: "col" }, "spread"))),
    element("tbody", {}, ...listed));
}

function choicesList(trial) {
  if (!trial.choices) return null;
  const rows = Object.entries(study.slots).flatMap(([slot, values], index) => trial.choices[index] === null ? []
    : [element("dt", {}, ...breakable(slot)), element("dd", {}, JSON.stringify(values[trial.choices[index]]))]);
  return element("details", {}, element("summary", {}, "Its choices"), element("dl", {}, ...rows));
}

function description(details) {
  return element("details", {}, element("summary", {}, "Its description, as architecture.yaml has it"),
    element("pre", { tabindex: "0" }, details.yaml));
}

/** The drawings come from levit-search itself, whose texts are escaped where they are made. */
function sheet(title, svg) {
  const box = element("div", { class: "sheet-box" });
  box.innerHTML = svg;
  return element("div", {}, element("h3", {}, title), box);
}

function sheets(details) {
  const found = [];
  if (details.diagram) found.push(sheet("Blocks, with what each costs", details.diagram));
  if (details.maps) found.push(sheet("Its trained weights", details.maps));
  if (details.note) found.push(element("p", { class: "soft" }, details.note));
  return found;
}

function noSheets(trial) {
  if (!trial.architecture) return element("p", { class: "soft" }, "There is no network to draw.");
  return element("p", { class: "soft" }, "Diagrams are made for the front, known networks and those that are picked: ",
    element("code", {}, `levit-search report ${study.folder} --pick trial=${trial.trial}`));
}

function startNetwork() {
  const list = at("network-choice");
  list.append(element("option", { value: "", disabled: true, hidden: true }, "another trial"));
  for (const number of study.chosen) {
    const trial = byTrial.get(number);
    const why = study.details[number].picked_as.join(", ");
    list.append(element("option", { value: String(number) }, `trial ${number}: ${written(trial, up) ? `${written(trial, up)} ${study.up_unit}, ` : ""}${why}`));
  }
  list.addEventListener("change", () => choose(Number(list.value), "list"));
  const step = (by) => () => {
    const next = study.chosen[Math.max(0, study.chosen.indexOf(chosenTrial)) + by];
    if (next !== undefined) choose(next, "list");
  };
  at("network-before").addEventListener("click", step(-1));
  at("network-next").addEventListener("click", step(1));
  const asked = /^#trial-(\d+)$/.exec(location.hash);
  if (asked && byTrial.has(Number(asked[1]))) chosenTrial = Number(asked[1]);
}

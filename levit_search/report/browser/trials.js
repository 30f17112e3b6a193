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
  ...study.columns.flatMap((figure) => [{ key: figure, title: head(figure), of: (t) => t.values[figure], text: (t) => written(t, figure), number: true, isMore: figure === "top1_percent" },
    ...(figure === "top1_percent" ? ACCURACY : [])]),
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

const markRow = () => {
  for (const row of at("trials-table").tBodies[0].rows) row.setAttribute("aria-selected", String(Number(row.dataset.trial) === chosenTrial));
};

function startTrials() {
  const heads = COLUMNS.map((column) => element("th", { scope: "col", "data-key": column.key, "aria-sort": "none", class: column.number ? "number" : "" },
    element("button", { type: "button", onclick: () => sortBy(column) }, column.title, element("span", { "aria-hidden": "true" }))));
  at("trials-table").append(element("thead", {}, element("tr", {}, ...heads)), element("tbody"));
  const outcomes = [...new Set(study.trials.map((t) => t.outcome))];
  at("trials-outcome").append(...[...Object.keys(SHOWN), ...outcomes.filter((name) => name !== "complete")].map((name) => element("option", {}, name)));
  const again = () => { rowsShown = PAGE; showTrials(); };
  at("trials-text").addEventListener("input", again);
  at("trials-outcome").addEventListener("change", again);
  at("trials-more").addEventListener("click", () => {
    const first = rowsShown;
    rowsShown += PAGE;
    showTrials();
    at("trials-table").tBodies[0].rows[first]?.focus();
  });
  nearby(at("trials"), showTrials);
}

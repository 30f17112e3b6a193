// Importance, and networks as lines through their choices.

const SLOTS = Object.entries(study.slots);
const SVG = "http://www.w3.org/2000/svg";
const ROW = 100; // of the lines' own coordinates; wide ones go from 0 to 1000
const kept = new Map(); // by slot, the places that are asked for

function startImportance() {
  const named = Object.keys(study.importance);
  const whole = study.trials.filter(isWhole).length;
  if (!named.length) {
    at("importance-note").textContent = SLOTS.length
      ? `Importance needs at least ${study.importance_fewest} networks that were evaluated to the end and differ; there are ${whole}.`
      : "Nothing varies in this space.";
    at("importance-table").remove();
    return;
  }
  at("importance-note").textContent = `How much of what single choices explain of an objective's variance is due to each: fANOVA on ${whole} networks that were evaluated to the end, shares that add up to 100 %. `
    + "A search draws more networks where it found good ones and stops others early, so this sample is biased: the shares tell what mattered among the networks that it evaluated, not in the space as a whole.";
  const most = (slot) => Math.max(...named.map((name) => study.importance[name][slot] || 0));
  const ordered = SLOTS.map(([slot]) => slot).sort((a, b) => most(b) - most(a));
  const shown = ordered.filter((slot) => most(slot) >= 0.01);
  const largest = Math.max(...shown.map(most));
  const rows = shown.map((slot) => element("tr", {}, element("th", { scope: "row" }, ...breakable(slot)), ...named.map((name) => {
    const share = study.importance[name][slot] || 0;
    const bar = element("i", { "aria-hidden": "true" });
    bar.style.width = `calc((100% - 3.4rem) * ${share / largest})`;
    return element("td", {}, element("div", { class: "bar" }, bar, element("span", {}, `${(100 * share).toFixed(1)} %`)));
  })));
  const rest = ordered.length - shown.length;
  at("importance-table").append(element("table", { class: "bars" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "choice"), ...named.map((name) => element("th", { scope: "col" }, study.names[name])))),
    element("tbody", {}, ...rows)), rest ? element("p", { class: "hint" }, `${rest} others explain less than 1 % each.`) : "");
}

// cividis (Nunez, Anderton and Renslow 2018), which people with and without colour vision read alike.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];

function shade(share) {
  const [low, high] = isDark() ? [0.38, 1] : [0, 0.86]; // the ends that the paper would swallow
  const place = (low + share * (high - low)) * (CIVIDIS.length - 1);
  const [a, b] = [CIVIDIS[Math.floor(place)], CIVIDIS[Math.ceil(place)]];
  const mix = (from) => Math.round(parseInt(a.slice(from, from + 2), 16) * (1 - (place % 1)) + parseInt(b.slice(from, from + 2), 16) * (place % 1));
  return `rgb(${mix(1)}, ${mix(3)}, ${mix(5)})`;
}

const lined = study.trials.filter((t) => isWhole(t) && t.choices);
const lineFigures = [...new Set([up, ...study.objectives, ...study.tabs.map((tab) => tab.figure)])];

/** Places of a slot from left to right; one for networks that do not have it comes first. */
const withAbsent = SLOTS.map((_, index) => lined.some((t) => t.choices[index] === null));
const across = (index, place) => {
  const count = SLOTS[index][1].length + withAbsent[index];
  const at = place === null ? 0 : place + withAbsent[index];
  return (1000 * (at + 0.5)) / count;
};

function ranks(figure) {
  const sorted = lined.map((t) => t.values[figure]).sort((a, b) => a - b);
  const low = sorted[0], high = sorted[sorted.length - 1];
  const scale = figure === "top1_percent" ? (v) => v : Math.log;
  return {
    rank: (t) => sorted.indexOf(t.values[figure]) / Math.max(1, sorted.length - 1),
    share: (t) => (high > low ? (scale(t.values[figure]) - scale(low)) / (scale(high) - scale(low)) : 0.5),
  };
}

function drawLines() {
  const figure = lineFigures[at("lines-figure").selectedIndex];
  const { rank, share } = ranks(figure);
  const ends = study.objectives.map((name) => ({ name, ...ranks(name) }));
  const height = ROW * (SLOTS.length + ends.length);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 1000 ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const middle = isNarrow() ? 0.68 : 0.5;
  const down = (row) => ROW * (row + middle);
  const matching = lined.filter((t) => [...kept].every(([index, places]) => places.has(t.choices[index])));
  for (const trial of matching) {
    const points = SLOTS.map(([, values], index) => {
      const room = Math.min(160, 620 / (values.length + withAbsent[index]));
      return across(index, trial.choices[index]) + (rank(trial) - 0.5) * room;
    });
    for (const end of ends) points.push(10 + 980 * end.share(trial));
    let path = `M${points[0].toFixed(1)},${down(0)}`;
    for (let row = 1; row < points.length; row++) {
      const between = (down(row - 1) + down(row)) / 2;
      path += `C${points[row - 1].toFixed(1)},${between} ${points[row].toFixed(1)},${between} ${points[row].toFixed(1)},${down(row)}`;
    }
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", path);
    line.setAttribute("fill", "none");
    line.setAttribute("vector-effect", "non-scaling-stroke");
    line.dataset.trial = trial.trial;
    line.dataset.stroke = shade(share(trial));
    line.dataset.opacity = String(Math.max(0.18, Math.min(0.8, 60 / matching.length)));
    svg.append(line);
  }
  const old = at("lines").querySelector("svg");
  if (old) old.replaceWith(svg); else at("lines").prepend(svg);
  markLine();
  at("lines-count").textContent = `${matching.length} of ${lined.length} networks`;
  at("lines-clear").disabled = kept.size === 0;
  const bar = element("i");
  bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(shade).join(", ")})`;
  const text = (value) => study.ends[figure] ? study.ends[figure][value] : "";
  at("lines-scale").replaceChildren(element("span", { class: "scale" }, `${head(figure)} ${text(0)}`, bar, text(1)));
}

/** The network that was chosen, over the others. */
function markLine() {
  const svg = at("lines")?.querySelector("svg");
  if (!svg) return;
  for (const line of [...svg.children]) {
    const isChosen = Number(line.dataset.trial) === chosenTrial;
    line.setAttribute("stroke", isChosen ? colour("ink") : line.dataset.stroke);
    line.setAttribute("stroke-width", isChosen ? 3 : 1.2);
    line.setAttribute("stroke-opacity", isChosen ? 1 : line.dataset.opacity);
    if (isChosen) svg.append(line);
  }
}

function keep(index, place, button) {
  const places = kept.get(index) || new Set();
  if (!places.delete(place)) places.add(place);
  if (places.size) kept.set(index, places); else kept.delete(index);
  button.setAttribute("aria-pressed", String(places.has(place)));
  drawLines();
}

function startLines() {
  if (lined.length < 2 || !SLOTS.length) {
    for (const id of ["lines-title", "lines-figure", "lines"]) (at(id).closest(".choose") || at(id)).remove();
    at("lines-scale").previousElementSibling.remove();
    return;
  }
  at("lines-figure").append(...lineFigures.map((figure) => element("option", {}, head(figure))));
  at("lines-figure").addEventListener("change", drawLines);
  at("lines-clear").addEventListener("click", () => {
    kept.clear();
    for (const button of at("lines").querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
    drawLines();
  });
  const axes = SLOTS.map(([slot, values], index) => {
    const places = [...(withAbsent[index] ? [null] : []), ...values.keys()];
    const buttons = places.map((place) => {
      const text = place === null ? "–" : typeof values[place] === "string" ? values[place] : JSON.stringify(values[place]);
      const button = element("button", { type: "button", "aria-pressed": "false", "aria-label": `${slot} ${place === null ? "not there" : text}`, onclick: () => keep(index, place, button) }, text.length > 14 ? `${text.slice(0, 13)}…` : text);
      button.style.left = `${across(index, place) / 10}%`;
      return button;
    });
    return element("div", { class: "axis" }, element("span", {}, ...breakable(slot)), ...buttons);
  });
  for (const name of study.objectives) axes.push(element("div", { class: "axis" }, element("span", {}, head(name)),
    element("em", {}, study.ends[name][0]), element("em", {}, study.ends[name][1])));
  at("lines").append(...axes);
  nearby(at("lines"), drawLines);
}

// The page is put together: the first picture first, the others once they come near.

function startTheme() {
  const button = at("theme");
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  let kept = null;
  try { kept = localStorage.getItem("levit-search-theme"); } catch { /* files may have no storage */ }
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  const again = () => { show(); redraw(); if (at("lines")?.querySelector("svg")) drawLines(); };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("levit-search-theme", theme); } catch { /* as above */ }
    again();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  show();
}

function startSections() {
  at("sections").append(...[...document.querySelectorAll("main > section")].map((section) =>
    element("li", {}, element("a", { href: `#${section.id}` }, section.id === "network" ? "Network" : section.querySelector("h2").textContent))));
}

function startSummary() {
  const { counts, front, trials } = study.summary;
  const parts = Object.entries(counts).filter(([, count]) => count).map(([name, count]) => `${count} ${name}`);
  const spent = study.summary.hours !== null ? `${study.summary.hours.toPrecision(3)} hours` : `${study.summary.worker_hours.toPrecision(3)} worker hours`;
  at("summary").textContent = `${trials} trials (${parts.join(", ")}) in ${spent}; ${front} ${front === 1 ? "network" : "networks"} on the front${study.summary.hypervolume === null ? "" : `, hypervolume ${study.summary.hypervolume.toFixed(4)}`}. Made ${study.made.slice(0, 16).replace("T", " ")} UTC.`;
  at("folder").textContent = study.folder;
}

/** What the accuracies are worth, before anything else where that is little. */
function startVerdict() {
  const { text, advice } = study.verdict;
  if (!text) return at("verdict").remove();
  at("verdict").append(element("p", {}, text));
  if (advice.length) at("verdict").append(element("p", {}, "What to try, each in another study:"), element("ul", {}, ...advice.map((each) => element("li", {}, each))));
  return null;
}

/** After what is there has been painted. */
const painted = (action) => requestAnimationFrame(() => setTimeout(action));

startTheme();
startNetwork();
startSummary();
startVerdict();
startFront();
startBaselines();
startTrials();
startProgress();
startCurves();
startImportance();
startLines();
startPrediction();
startFailures();
startSetup();
startSections();
showNetwork();
const whole = new Promise((done) => document.addEventListener("DOMContentLoaded", done)); // Plotly is still being read
painted(async () => {
  performance.mark("first-picture");
  await whole;
  startPlotly();
  painted(() => { performance.mark("interactive"); whenIdle(drawRest); });
});
if (location.hash.startsWith("#trial-")) at("network").scrollIntoView();
window.addEventListener("hashchange", () => {
  const asked = /^#trial-(\d+)$/.exec(location.hash);
  if (asked) choose(Number(asked[1]), "table");
});
let width = isNarrow();
window.addEventListener("resize", () => {
  if (isNarrow() !== width) { width = isNarrow(); redraw(); if (at("lines")?.querySelector("svg")) drawLines(); }
});

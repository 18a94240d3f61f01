// ---- Controls and the first row --------------------------------------------------------------

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = (name) => { root.dataset.theme = name; };
const otherTheme = () => setTheme(root.dataset.theme === "dark" ? "light" : "dark");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
at("theme").addEventListener("click", otherTheme);

choices(at("sort"), SORTS.map(([name, label]) => [name, label]), state.sort[0]);
choices(at("estimator"), estimators.map((name) => [name, name]), state.estimator);
choices(at("range"), [["page", "all rows alike"], ["row", "this row alone"]], state.range);
at("disagree-label").hidden = !anyOrder;
at("marked-label").hidden = !anySpans;
at("span-key").hidden = !anySpans;
at("estimator-label").hidden = estimators.length < 2;
at("range-label").hidden = rows.length < 2;

let waiting = 0;
at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
for (const id of ["disagree", "marked"]) at(id).addEventListener("change", () => refresh());
at("sort").addEventListener("change", () => { state.sort = SORTS.find((sort) => sort[0] === at("sort").value); state.turned = false; refresh(false); });
at("direction").addEventListener("click", () => { state.turned = !state.turned; refresh(false); });
at("previous").addEventListener("click", () => { state.page -= 1; list(); });
at("next").addEventListener("click", () => { state.page += 1; list(); });
at("range").addEventListener("change", () => { state.range = at("range").value; show(state.row); });
at("estimator").addEventListener("change", () => { state.estimator = at("estimator").value; show(state.row); });
for (const level of LEVELS) at("level-" + level).addEventListener("change", () => { state.level = level; show(state.row); });

function readBy(level) {
  at("level-" + level).checked = true;
  state.level = level;
  show(state.row);
}

function nextEstimator() {
  if (estimators.length < 2) return;
  state.estimator = estimators[(estimators.indexOf(state.estimator) + 1) % estimators.length];
  at("estimator").value = state.estimator;
  show(state.row);
}

const KEYS = {
  j: () => step(1), k: () => step(-1), "/": () => at("search").focus(),
  1: () => readBy("token"), 2: () => readBy("word"), 3: () => readBy("sentence"),
  b: nextBlamed, s: nextSpan, e: nextEstimator, t: otherTheme,
};

at("rows").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -rows.length, End: rows.length }[event.key];
  if (by) { event.preventDefault(); step(by); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    leave();
    // Browsers would empty the field, some without saying so: what it says and what is listed must agree.
    if (event.target === at("search")) { event.preventDefault(); at("rows").focus(); }
    return;
  }
  const typing = /^(SELECT|TEXTAREA)$/.test(event.target.tagName) || event.target === at("search");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || !state.row) return;
  const act = Object.hasOwn(KEYS, event.key) && KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { const figure = document.querySelector(".curve"); if (figure && state.row) plot(figure, readRow(state.row)); }, 100);
});

if (rows.length <= 1) {
  at("list-pane").hidden = true;
  document.querySelector(".frame").classList.add("single");
}
const wanted = /row=(\d+)/.exec(location.hash);
const first = wanted && rows.find((row) => row.row === Number(wanted[1]));
refresh();
if (first) show(first);
else if (!rows.length) at("detail").append(make("p", "", "No row could be scored."));
performance.mark("drawn");

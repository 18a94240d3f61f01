// ---- Controls and the first row --------------------------------------------------------------

choices(at("sort"), SORTS.map(([name, label]) => [name, label]), state.sort[0]);
choices(at("estimator"), estimators.map((name) => [name, name]), state.estimator);
choices(at("range"), [["page", "all rows alike"], ["row", "this row alone"]], state.range);
at("disagree-label").hidden = !anyOrder;
at("marked-label").hidden = !anySpans;
at("span-key").hidden = !anySpans;
at("estimator-label").hidden = estimators.length < 2;
at("range-label").hidden = rows.length < 2;

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

browse({
  1: () => readBy("token"), 2: () => readBy("word"), 3: () => readBy("sentence"),
  b: nextBlamed, s: nextSpan, e: nextEstimator,
});
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { const figure = document.querySelector(".curve"); if (figure && state.row) plot(figure, readRow(state.row)); }, 100);
});

const first = addressed();
refresh();
if (first) show(first);
else if (!rows.length) at("detail").append(make("p", "", "No row could be scored."));
performance.mark("drawn");

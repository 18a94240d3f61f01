// ---- The list of rows ------------------------------------------------------------------------

const PAGE = 60;
const SORTS = [
  ["order", "Order in the data", (row) => row.order, 1, true],
  ["margin", "Margin", (row) => row.margin, -1, anyOrder],
  ["disagreement", "Label disagreement", (row) => row.margin, 1, anyOrder],
  ["total", anyOrder ? "Summed reward of chosen" : "Summed reward", (row) => row.sides[0].total, -1, true],
  ["worst", "Most-blamed token", (row) => row.worst[1], 1, true],
  ["p", "Surest error span", (row) => row.smallestP, 1, anySpans],
  ["length", "Length", (row) => row.length, -1, true],
].filter((sort) => sort[4]);
const state = {
  sort: SORTS[0], turned: false, page: 0, found: rows, row: null,
  level: LEVELS[0], estimator: PLAIN, range: "page",
};

// The row that is shown stays if it is still among those found, unless the order has changed.
function refresh(keep = true) {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [, , key, direction] = state.sort;
  const turn = direction * (state.turned ? -1 : 1);
  const value = (row) => { const x = key(row); return x === undefined || x === Infinity ? Infinity : turn * x; };
  const apart = (a, b) => (a === b ? 0 : a - b);
  state.found = rows
    .filter((row) => !at("disagree").checked || row.margin <= 0)
    .filter((row) => !at("marked").checked || row.marked)
    .filter((row) => words.every((word) => searchText(row).includes(word)))
    .sort((a, b) => apart(value(a), value(b)) || a.order - b.order);
  at("direction").textContent = turn > 0 ? "↑" : "↓";
  at("direction").title = turn > 0 ? "lowest first" : "highest first";
  const here = keep ? state.found.indexOf(state.row) : -1;
  state.page = Math.floor(Math.max(0, here) / PAGE);
  list();
  if (here < 0 && state.found.length) show(state.found[0]);
}

function list() {
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
  const some = state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
  at("rows").replaceChildren(...some.map(item));
  at("nothing").hidden = some.length > 0;
  at("page").textContent = plural(state.found.length, "row") + " · page " + (state.page + 1) + " of " + pages;
  at("previous").disabled = state.page === 0;
  at("next").disabled = state.page >= pages - 1;
  select();
}

function item(row) {
  const node = make("li");
  node.id = rowId(row);
  node.setAttribute("role", "option");
  const head = samePrompts ? row.sides[0].text : opening(row);
  const what = paint(make("span", "what"), cut(head.replace(/\s+/g, " "), 240));
  const size = row.ordered ? row.margin : row.sides[0].total;
  const under = make("span", "under", "#" + row.row);
  if (row.ordered) under.append(bar(row.margin / marginScale));
  if (row.ordered && row.margin <= 0) under.append(make("span", "flag", "≠ label"));
  if (row.marked) under.append(make("span", "flag span-flag", pValue(row.smallestP)));
  const worst = make("span", "worst", make("bdi", "", cut(quoted(data.strings[row.worst[0]]), 24)));
  worst.append(make("span", signClass(row.worst[1]), signed(row.worst[1], 2)));
  worst.title = "most-blamed token";
  under.append(worst);
  const number = make("span", "number " + signClass(size), signed(size, 2));
  number.title = row.ordered ? "margin" : "summed reward";
  node.append(what, number, under);
  node.addEventListener("click", () => show(row));
  return node;
}
// Where prompts begin alike, the responses tell the rows apart.
const opening = (row) => (row.prompt.length ? row.prompt[row.prompt.length - 1][1] : "").trim();
const samePrompts = new Set(rows.map((row) => cut(opening(row), 60))).size <= rows.length / 2 || rows.some((row) => !opening(row));

// A bar from the middle: to the left what is below zero.
function bar(share, className = "bar") {
  const fill = make("i");
  const width = 50 * Math.min(1, Math.abs(share));
  fill.style.cssText = `width:${width}%;left:${share < 0 ? 50 - width : 50}%;background:var(--${share < 0 ? "blamed" : "liked"})`;
  return make("span", className, fill);
}

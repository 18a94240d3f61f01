// ---- One row ---------------------------------------------------------------------------------

let cells = [];   // cells[side][unit], in reading order
let drawn = [];   // the units that they show
let curve = null; // moves the curve's marks to a token

function show(row) {
  const inside = cells.findIndex((side) => side.includes(document.activeElement));
  state.row = row;
  leave();
  const held = state.found.indexOf(row);
  if (held >= 0 && Math.floor(held / PAGE) !== state.page) { state.page = Math.floor(held / PAGE); list(); }
  select();
  const sides = readRow(row);
  const scale = state.range === "page" ? pageScale(state.level, state.estimator) : scaleOf([row], state.level, state.estimator);
  drawn = sides.map((side) => unitsOf(side, state.level, state.estimator).filter((unit) => !unit.bare));
  cells = sides.map(() => []);
  const texts = make("div", "sides", ...sides.map((side, i) => sideNode(side, i, scale)));
  const figure = make("figure", "curve");
  const difference = row.segments ? [differenceNode(row, sides)] : [];
  at("detail").replaceChildren(rowHead(row), promptNode(row), texts, ...difference, figure);
  legend(scale);
  plot(figure, sides);
  if (inside >= 0 && cells[inside]) focusOne(cells[inside], 0);
  if (rows.length > 1) history.replaceState(null, "", "#row=" + row.row);
}

function rowHead(row) {
  const head = make("div", "rowhead");
  if (rows.length > 1) head.append(make("h2", "", "Row " + row.row));
  if (row.ordered) {
    const verdict = make("span", "verdict", (row.margin > 0 ? "agrees" : "disagrees") + " with the label, margin ");
    verdict.append(make("b", signClass(row.margin), signed(row.margin)));
    head.append(verdict);
  }
  at("announce").textContent = head.textContent.replace(/^Row \d+/, "$&: ");
  return head;
}

function legend(scale) {
  const about = aboutEstimator(state.estimator);
  at("unit").textContent = about.unit;
  at("estimator-note").textContent = about.summary;
  at("low").textContent = "blamed " + signed(-scale, 2);
  at("high").textContent = signed(scale, 2) + " liked";
}

const sideName = (side) => (/^\d+$/.test(side.name) ? "Rank " + side.name : side.name);

function sideNode(side, number, scale) {
  const rewards = rewardsOf(side, state.estimator);
  const total = rewards.reduce((sum, reward) => sum + reward, 0);
  const head = make("header", "", make("h3", "", sideName(side)));
  const mean = signed(total / side.count) + (aboutEstimator(state.estimator).spread ? " on average" : " each");
  if (!aboutEstimator(state.estimator).spread) {
    const sum = make("span", "sum " + signClass(total), signed(total));
    sum.title = (state.estimator === PLAIN ? "summed implicit reward, " : `sum of ${state.estimator}, `) + aboutEstimator(state.estimator).unit;
    head.append(sum);
  }
  head.append(make("span", "count", plural(side.count, "token") + ", " + mean));
  const text = make("div", "tokens");
  text.dir = "auto";
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-orientation", "horizontal");
  text.setAttribute("aria-label", `${sideName(side)}, ${state.level}s; use the arrow keys`);
  fill(text, side, number, scale);
  const node = make("section", "side", head, text);
  node.setAttribute("aria-label", sideName(side));
  if (side.cut) node.append(make("p", "cutnote", plural(side.cut, "more token") + " cut off by the length limit."));
  if (side.spans && side.spans.length) node.append(spanList(side, number));
  return node;
}

// Units in reading order; text that belongs to no unit (blanks, what no token covers) between them.
function fill(text, side, number, scale) {
  const spans = (side.spans || []).filter((span) => span.flagged);
  let written = 0;
  const plain = (end) => {
    const between = side.text.slice(written, end);
    if (between) text.append(paint(make("span", /\S/.test(between) ? "mark" : ""), between));
  };
  // What a length limit cut away is not text that tokens passed over.
  const last = side.cut ? largest(side.ends, 0) : side.text.length;
  for (const unit of drawn[number]) {
    const end = Math.max(written, unit.outside ? Math.min(unit.start, last) : unit.start);
    plain(end);
    written = Math.max(end, unit.end);
    const node = unitNode(side, unit, number, cells[number].length, scale);
    const over = spans.filter((span) => touches(unit, span));
    if (over.length) node.classList.add("in-span");
    cells[number].push(node);
    text.append(node);
    for (const span of over) {
      if (unit === drawn[number].findLast((each) => touches(each, span))) text.append(badge(span));
    }
  }
  plain(last);
  if (cells[number].length) cells[number][0].tabIndex = 0;
}

const touches = (unit, span) => unit.tokens.some((token) => token >= span.first && token < span.last);

function badge(span) {
  const node = make("sup", "pvalue", span.p === null ? "span" : pValue(span.p));
  node.setAttribute("aria-hidden", "true");
  return node;
}

function unitNode(side, unit, number, index, scale) {
  const node = make("span", "tok");
  tint(node, unit.reward, scale);
  node.tabIndex = -1;
  node.setAttribute("role", "option");
  node.setAttribute("aria-selected", "false");
  if (unit.outside) { node.classList.add("end"); node.append(quoted(unit.shown)); }
  else if (unit.shown) paintUnit(node, unit.shown);
  else node.append(make("span", "mark", "⁺"));
  const spans = (side.spans || []).filter((span) => span.flagged && touches(unit, span));
  const inSpans = spans.map((span) => `, in an error span${span.p === null ? "" : ", " + pValue(span.p)}`).join("");
  node.setAttribute("aria-label", `${quoted(unit.text)}, ${signed(unit.reward)}${inSpans}`);
  node.addEventListener("mouseenter", () => enter(number, index));
  node.addEventListener("mouseleave", leave);
  node.addEventListener("focus", () => enter(number, index));
  node.addEventListener("blur", leave);
  node.addEventListener("keydown", (event) => walk(event, number, index));
  return node;
}

function spanList(side, number) {
  const node = make("ul", "spans");
  node.setAttribute("aria-label", "Error spans of " + sideName(side));
  for (const span of side.spans) {
    const text = make("bdi", "", "“" + short(quoted(side.text.slice(span.start, span.end)), 90) + "”");
    const facts = [span.p === null ? "" : pValue(span.p), span.reward === null ? "" : signed(span.reward), span.flagged ? "flagged" : "not flagged"];
    const button = make("button", "plain", text, make("small", "", facts.filter(Boolean).join(" · ")));
    button.type = "button";
    pointAt(button, [[number, (unit) => touches(unit, span)]]);
    node.append(make("li", span.flagged ? "flagged" : "", button));
  }
  return node;
}

// While the pointer or the focus is on `node`, the units that `fits` are marked.
function pointAt(node, wanted) {
  const mark = (on) => {
    for (const [number, fits] of wanted) {
      drawn[number].forEach((unit, i) => { if (fits(unit)) cells[number][i].classList.toggle("pointed", on); });
    }
  };
  for (const begin of ["mouseenter", "focus"]) node.addEventListener(begin, () => mark(true));
  for (const end of ["mouseleave", "blur"]) node.addEventListener(end, () => mark(false));
  node.addEventListener("click", () => {
    const [number, fits] = wanted.find(([side, chosen]) => drawn[side].some(chosen)) || [];
    if (number !== undefined) cells[number][drawn[number].findIndex(fits)].scrollIntoView({ block: "nearest" });
  });
}

function walk(event, number, index) {
  const last = cells[number].length - 1;
  const target = {
    ArrowRight: () => index + 1, ArrowLeft: () => index - 1, Home: () => 0, End: () => last,
    ArrowDown: () => lineAway(number, index, 1), ArrowUp: () => lineAway(number, index, -1),
  }[event.key];
  if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const next = target();
  if (next >= 0 && next <= last) focusOne(cells[number], next);
}

// The unit on the next line, up or down, that stands nearest below or above.
function lineAway(number, index, direction) {
  const here = cells[number][index].getBoundingClientRect();
  const far = (box) => Math.abs(box.left + box.width / 2 - here.left - here.width / 2);
  let best = -1, line = null, least = Infinity;
  for (let i = index + direction; cells[number][i]; i += direction) {
    const box = cells[number][i].getBoundingClientRect();
    const apart = (box.top - here.top) * direction;
    if (apart < here.height / 2) continue;
    if (line !== null && (box.top - line) * direction > here.height / 2) break;
    line ??= box.top;
    if (far(box) < least) { least = far(box); best = i; }
  }
  return best;
}

// From where the focus is, the next unit that `fits` in the order of `compare`; round and round.
function jump(fits, compare) {
  const all = drawn.flatMap((units, number) => units.map((unit, index) => ({ unit, number, index }))).filter(({ unit, number }) => fits(unit, number));
  if (!all.length) return;
  all.sort((a, b) => compare(a, b));
  const here = all.findIndex(({ number, index }) => cells[number][index] === document.activeElement);
  const next = all[(here + 1) % all.length];
  focusOne(cells[next.number], next.index);
}
const nextBlamed = () => jump((unit) => unit.reward < 0, (a, b) => a.unit.reward - b.unit.reward);
const nextSpan = () =>
  jump((unit, number) => (readRow(state.row)[number].spans || []).some((span) => span.flagged && unit === drawn[number].find((each) => touches(each, span))),
    (a, b) => a.number - b.number || a.index - b.index);

// ---- The tree that was searched -----------------------------------------------------------------

const WIDE = 7.6, HIGH = 30, ROOT = 9;   // pixels of a character and of a row; characters of the prompt's box

function treeNode(tree) {
  const width = (tree.width + ROOT + 24) * WIDE, height = (tree.height + 0.4) * HIGH;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "tree", "aria-label": "The tree that was searched; use the arrow keys" });
  const left = (box) => (box.x + ROOT) * WIDE, middle = (box) => (box.y + 0.6) * HIGH;
  svg.append(draw("rect", { x: 1, y: 0.18 * HIGH, width: (ROOT - 2) * WIDE, height: 0.84 * HIGH, rx: 4 }), words(0.6 * WIDE, 0.6 * HIGH, "prompt"));
  const nodes = [];
  for (const box of tree.boxes) {
    const parent = tree.boxes[box.parent];
    const from = parent ? [left(parent) + parent.width * WIDE, middle(parent)] : [(ROOT - 2) * WIDE, 0.6 * HIGH];
    const half = (from[0] + left(box)) / 2;
    const edge = draw("path", { d: `M${from} C${half},${from[1]} ${half},${middle(box)} ${left(box)},${middle(box)}`, "stroke-width": 0.7 + 4 * Math.exp(Math.min(0, box.logp)) });
    const side = box.log_ratio === null || Math.abs(box.log_ratio) < 0.1 ? "" : box.log_ratio < 0 ? " blamed" : " liked";
    edge.setAttribute("class", "edge" + side + (box.fate === "pruned" ? " faint" : ""));
    svg.append(edge);
  }
  tree.boxes.forEach((box, number) => {
    const node = draw("g", { role: "treeitem", tabindex: number ? -1 : 0, "aria-selected": "false", "aria-level": depth(tree, number), "aria-label": boxLabel(box) });
    node.setAttribute("class", "box " + box.fate);
    node.append(draw("rect", { x: left(box), y: middle(box) - 0.42 * HIGH, width: box.width * WIDE, height: 0.84 * HIGH, rx: 4 }),
      words(left(box) + WIDE, middle(box), box.text));
    if (!box.children.length) node.append(words(left(box) + (box.width + 1) * WIDE, middle(box), ending(box), "aside-text"));
    for (const begin of ["mouseenter", "focus"]) node.addEventListener(begin, () => { enter(node, boxCard(box)); path(tree, nodes, number, true); });
    for (const close of ["mouseleave", "blur"]) node.addEventListener(close, () => { leave(); path(tree, nodes, number, false); });
    node.addEventListener("keydown", (event) => walkTree(event, tree, nodes, number));
    nodes.push(node);
    svg.append(node);
  });
  const canvas = make("div", "canvas", svg);
  const figure = make("figure", "tree", make("figcaption", "", tree.notes.join(" ")), canvas);
  figure.setAttribute("aria-label", "The tree that was searched");
  return figure;
}

function words(x, y, text, className = "") {
  const node = draw("text", { x, y }, text);
  if (className) node.setAttribute("class", className);
  return node;
}

function depth(tree, number) {
  let levels = 0;
  for (let at = number; at >= 0; at = tree.boxes[at].parent) levels += 1;
  return levels;
}

const FATES = { chosen: "given back", finished: "a whole response", open: "went on", dropped: "dropped", pruned: "dropped at once" };
const fateOf = (box) => FATES[box.fate];
const boxLabel = (box) => `${box.text}, score ${minus(box.score)}, ${box.rank ? "response " + box.rank : fateOf(box)}`;

function ending(box) {
  const score = (box.rank ? box.rank + ".  " : "") + minus(box.score);
  return box.fate === "dropped" ? score + "  dropped" : score;
}

function boxCard(box) {
  const head = [make("span", "where", box.rank ? "response " + box.rank : fateOf(box)), make("div", "name", short(box.tokens.map((token) => quoted(token.text)).join(" "), 160))];
  const table = make("table", "", line("score up to here", minus(box.score)));
  if (box.log_ratio !== null) table.append(line("log-ratio of the stretch", signed(box.log_ratio), "nats", signClass(box.log_ratio)));
  if (box.visits) table.append(line("visits", box.visits.toLocaleString("en")));
  if (box.value !== null) table.append(line("value", minus(box.value)));
  if (box.hidden) table.append(line("also tried behind it", plural(box.hidden, "token")));
  return [...head, table, tokenList("Tokens", box.tokens.slice(0, 10)), ...(box.dropped.length ? [tokenList("Dropped behind the last one", box.dropped)] : [])];
}

function tokenList(caption, tokens) {
  const table = make("table", "best", make("caption", "", caption));
  const ref = tokens.some((token) => token.ref_logp !== null);
  table.append(make("thead", "", make("tr", "", ...["token", "π", ...(ref ? ["π ref"] : []), "score"].map((name) => make("th", "", name)))));
  for (const token of tokens) {
    const theirs = ref ? [make("td", "", percent(token.ref_logp))] : [];
    table.append(make("tr", "", make("th", "", quoted(token.text)), make("td", "", percent(token.logp)), ...theirs, make("td", "", minus(token.score))));
  }
  return table;
}

function path(tree, nodes, number, on) {
  for (let at = number; at >= 0; at = tree.boxes[at].parent) nodes[at].classList.toggle("path", on);
}

// Left and right along a branch; up and down to the box above or below.
function walkTree(event, tree, nodes, number) {
  const box = tree.boxes[number];
  const beside = (direction) => {
    let best = -1;
    tree.boxes.forEach((each, i) => {
      const apart = (each.y - box.y) * direction;
      if (apart <= 0) return;
      const old = best < 0 ? Infinity : (tree.boxes[best].y - box.y) * direction;
      if (apart < old || (apart === old && Math.abs(each.x - box.x) < Math.abs(tree.boxes[best].x - box.x))) best = i;
    });
    return best;
  };
  const target = { ArrowLeft: () => box.parent, ArrowRight: () => box.children[0] ?? -1, ArrowUp: () => beside(-1), ArrowDown: () => beside(1) }[event.key];
  if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const next = target();
  if (next >= 0) focusOne(nodes, next);
}

// ---- Controls ----------------------------------------------------------------------------------

at("tools").hidden = !scored;
at("low").textContent = "blamed " + signed(-data.scale, 2);
at("high").textContent = signed(data.scale, 2) + " liked";

browse();
state.row = addressed();
if (state.row) show(state.row);
refresh();
if (!rows.length) at("detail").append(make("p", "", "Nothing was found."));

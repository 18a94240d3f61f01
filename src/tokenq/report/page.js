"use strict";
// Reads the page's data and draws one row at a time. Text reaches the document as text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 60;
  const SVG = "http://www.w3.org/2000/svg";
  const at = (id) => document.getElementById(id);

  // ---- Numbers of each row -------------------------------------------------------------------

  const nats = (whole) => whole / data.unit;
  const rows = data.rows.map((row, order) => {
    const sides = row.sides.map(readSide);
    const worst = sides.map((side) => side.worst).reduce((a, b) => (b.reward < a.reward ? b : a));
    const text = row.prompt.map((turn) => turn[1]).concat(sides.map((side) => side.text)).join("\n");
    return { ...row, order, sides, worst, search: text.toLowerCase(),
             ordered: "margin" in row, length: sides.reduce((sum, s) => sum + s.tokens.length, 0) };
  });

  function readSide(side) {
    const outside = new Set(side.outside), shared = new Set(side.shared);
    const tokens = side.tokens.map((number) => data.strings[number]);
    const rewards = side.logps.map((logp, i) => data.beta * nats(logp - side.refs[i]));
    const values = [0];
    for (const reward of rewards) values.push(values[values.length - 1] + reward);
    const low = rewards.reduce((best, reward, i) => (reward < rewards[best] ? i : best), 0);
    const inner = tokens.filter((_, i) => !outside.has(i) && !shared.has(i)).join("");
    return { ...side, outside, shared, tokens, rewards, values, total: values[values.length - 1],
             worst: { reward: rewards[low], token: tokens[low] }, text: side.before + inner + side.after };
  }

  function scaleOf(some) {
    // The 98th percentile: a few extreme tokens do not wash out all others.
    const sizes = some.flatMap((row) => row.sides.flatMap((side) => side.rewards.map(Math.abs)));
    sizes.sort((a, b) => a - b);
    return sizes[Math.min(sizes.length - 1, Math.floor(0.98 * sizes.length))] || 1e-9;
  }
  const pageScale = scaleOf(rows);
  const anyOrder = rows.some((row) => row.ordered);
  const marginScale = Math.max(1e-9, ...rows.map((row) => Math.abs(row.margin || 0)));

  // ---- Writing -------------------------------------------------------------------------------

  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }

  function draw(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const signed = (x, digits = 3) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
  const minus = (x) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(3);
  const signClass = (x) => (x < 0 ? "minus" : "plus");
  function percent(logp) {
    const p = 100 * Math.exp(logp);
    return p >= 10 ? p.toFixed(1) + "%" : p >= 0.01 ? p.toPrecision(2) + "%" : "10^" + Math.round(logp / Math.LN10);
  }

  // Control, direction and invisible characters and broken ones are named: they must neither hide
  // nor reorder text.
  const HIDDEN = /([\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\p{Cs}])/u;
  const code = (char) => "U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  function paint(node, text) {
    for (const part of text.split(HIDDEN)) {
      if (part === "\t") node.append(make("span", "mark", "⇥"), "\t");
      else if (part.length === 1 && HIDDEN.test(part)) node.append(make("span", "control", code(part)));
      else if (part) node.append(part);
    }
    return node;
  }

  function paintToken(node, text) {
    if (/^ +$/.test(text)) { node.append(make("span", "mark", "␣".repeat(text.length))); return; }
    text.split("\n").forEach((line, i) => {
      if (i) node.append(make("span", "mark", "↵"), "\n");
      if (i && /^ +$/.test(line)) node.append(make("span", "mark", "␣".repeat(line.length)));
      else paint(node, line);
    });
  }

  const cut = (text, length) => Array.from(text.slice(0, 2 * length)).slice(0, length).join("");
  const quoted = (text) =>
    text.split(HIDDEN).map((part) => (part === "\t" ? "⇥" : part.length === 1 && HIDDEN.test(part) ? code(part) : part))
      .join("").replace(/\n/g, "↵").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));

  // ---- The list ------------------------------------------------------------------------------

  const SORTS = [
    ["order", "Order in the data", (row) => row.order, 1],
    ["margin", "Margin", (row) => row.margin, -1, "order"],
    ["disagreement", "Label disagreement", (row) => row.margin, 1, "order"],
    ["total", "Summed reward", (row) => row.sides[0].total, -1],
    ["worst", "Most-blamed token", (row) => row.worst.reward, 1],
    ["length", "Length", (row) => row.length, -1],
  ].filter((sort) => anyOrder || sort[4] !== "order");
  const state = { sort: SORTS[0], turned: false, page: 0, found: rows, row: null, wide: "page" };

  for (const sort of SORTS) {
    const option = make("option", "", sort[0] === "total" && anyOrder ? "Summed reward of chosen" : sort[1]);
    option.value = sort[0];
    at("sort").append(option);
  }
  at("disagree-label").hidden = !anyOrder;

  function refresh() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [, , key, direction] = state.sort;
    const turn = direction * (state.turned ? -1 : 1);
    const value = (row) => { const x = key(row); return x === undefined ? Infinity : turn * x; };
    state.found = rows
      .filter((row) => !at("disagree").checked || row.margin <= 0)
      .filter((row) => words.every((word) => row.search.includes(word)))
      .sort((a, b) => value(a) - value(b) || a.order - b.order);
    at("direction").textContent = turn > 0 ? "↑" : "↓";
    at("direction").title = turn > 0 ? "lowest first" : "highest first";
    state.page = 0;
    list();
    if (state.found.length) show(state.found[0]);
  }

  function list() {
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    const some = state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    at("rows").replaceChildren(...some.map(item));
    if (!some.length) at("rows").append(make("li", "nothing", "No row fits. Clear the search or the filter."));
    at("page").textContent = state.found.length.toLocaleString("en") + " rows · page " + (state.page + 1) + " of " + pages;
    at("previous").disabled = state.page === 0;
    at("next").disabled = state.page >= pages - 1;
    select();
  }

  function item(row) {
    const node = make("li");
    node.id = "row-" + row.order;
    node.setAttribute("role", "option");
    const head = samePrompts ? row.sides[0].text : opening(row);
    const what = paint(make("span", "what"), cut(head.replace(/\s+/g, " "), 240));
    const size = row.ordered ? row.margin : row.sides[0].total;
    const under = make("span", "under", "#" + row.row);
    if (row.ordered) under.append(bar(row.margin / marginScale));
    if (row.ordered && row.margin <= 0) under.append(make("span", "flag", "≠ label"));
    const worst = make("span", "worst", cut(quoted(row.worst.token), 24) + " ");
    worst.append(make("span", signClass(row.worst.reward), signed(row.worst.reward, 2)));
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

  function bar(share) {
    const fill = make("i");
    const width = 50 * Math.min(1, Math.abs(share));
    fill.style.cssText = `width:${width}%;left:${share < 0 ? 50 - width : 50}%;background:var(--${share < 0 ? "blamed" : "liked"})`;
    return make("span", "bar", fill);
  }

  function select() {
    for (const node of at("rows").children) {
      const on = state.row !== null && node.id === "row-" + state.row.order;
      node.setAttribute("aria-selected", on);
      if (on) { at("rows").setAttribute("aria-activedescendant", node.id); node.scrollIntoView({ block: "nearest" }); }
    }
  }

  function step(by) {
    const here = state.found.indexOf(state.row);
    const row = state.found[Math.max(0, Math.min(state.found.length - 1, here + by))];
    if (row) show(row);
  }

  // ---- One row -------------------------------------------------------------------------------

  let cells = [];   // cells[side][token]
  let curve = null; // moves the curve's marks to a token

  function show(row) {
    state.row = row;
    leave();
    const held = state.found.indexOf(row);
    if (held >= 0 && Math.floor(held / PAGE) !== state.page) { state.page = Math.floor(held / PAGE); list(); }
    select();
    const scale = state.wide === "page" ? pageScale : scaleOf([row]);
    const sides = make("div", "sides", ...row.sides.map((side, i) => sideNode(row, side, i, scale)));
    const figure = make("figure", "curve");
    at("detail").replaceChildren(rowHead(row, scale), promptNode(row), figure, sides);
    plot(figure, row);
    if (rows.length > 1) history.replaceState(null, "", "#row=" + row.row);
  }

  function rowHead(row, scale) {
    const head = make("div", "rowhead");
    if (rows.length > 1) head.append(make("h2", "", "Row " + row.row));
    if (row.ordered) {
      const agrees = row.margin > 0;
      const verdict = make("span", "verdict", agrees ? "agrees with the label, margin " : "disagrees with the label, margin ");
      verdict.append(make("b", signClass(row.margin), signed(row.margin)));
      head.append(verdict);
    }
    const choice = make("select");
    choice.setAttribute("aria-label", "Range of the colour scale");
    for (const [value, label] of [["page", "same for all rows"], ["row", "this row’s own"]]) {
      const option = make("option", "", label);
      option.value = value;
      option.selected = state.wide === value;
      choice.append(option);
    }
    choice.addEventListener("change", () => { state.wide = choice.value; show(row); });
    const ramp = make("span", "ramp");
    ramp.setAttribute("role", "img");
    ramp.setAttribute("aria-label", "Orange is negative, blue is positive");
    const legend = make("div", "legend", "blamed " + signed(-scale, 2), ramp, signed(scale, 2) + " liked");
    legend.title = "implicit reward of a token: beta times nats; stronger colours end here";
    legend.append(make("span", "", "β·nats"));
    if (rows.length > 1) legend.append(choice);
    head.append(legend);
    return head;
  }

  function promptNode(row) {
    const turns = make("div", "turns");
    for (const [role, text] of row.prompt) {
      const turn = make("p", "turn");
      if (role) turn.append(make("span", "role", role));
      turns.append(paint(turn, text));
    }
    const node = make("details", "prompt", make("summary", "", "Prompt"), turns);
    node.open = true;
    return node;
  }

  function sideNode(row, side, number, scale) {
    const head = make("header");
    const name = row.prompt && /^\d+$/.test(side.name) ? "Rank " + side.name : side.name;
    head.append(make("h3", "", name));
    const sum = make("span", "sum " + signClass(side.total), signed(side.total));
    sum.title = "summed implicit reward, beta times nats";
    const mean = signed(side.total / side.tokens.length);
    head.append(sum, make("span", "count", side.tokens.length + " tokens, " + mean + " each"));
    const text = make("div", "tokens");
    text.dir = "auto";
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", name + ", tokens; use the arrow keys");
    if (side.before) text.append(paint(make("span", "mark"), side.before));
    cells[number] = side.tokens.map((_, i) => tokenNode(side, i, number, scale));
    cells.length = row.sides.length;
    text.append(...cells[number]);
    cells[number][0].tabIndex = 0;
    if (side.after && !side.cut) text.append(paint(make("span", "mark"), side.after));
    const node = make("section", "side", head, text);
    if (side.cut) node.append(make("p", "cutnote", side.cut + " more tokens were cut off by the length limit."));
    return node;
  }

  function tokenNode(side, i, number, scale) {
    const reward = side.rewards[i];
    const strength = Math.min(1, Math.abs(reward) / scale);
    const pole = reward < 0 ? "blamed" : "liked";
    const node = make("span", "tok " + pole);
    const share = (100 * strength ** 0.85).toFixed(1);
    if (strength > 0.02) node.style.setProperty("--tint", `color-mix(in oklab, var(--${pole}) ${share}%, transparent)`);
    if (reward < 0 && strength > 0.25) node.style.setProperty("--under", "var(--blamed-ink)");
    node.tabIndex = -1;
    if (side.shared.has(i)) { node.append(make("span", "mark", "⁺")); }
    else if (side.outside.has(i)) { node.classList.add("end"); node.append(quoted(side.tokens[i])); }
    else paintToken(node, side.tokens[i]);
    node.setAttribute("aria-label", `${quoted(side.tokens[i])}, ${signed(reward)}`);
    node.addEventListener("mouseenter", () => enter(number, i));
    node.addEventListener("mouseleave", leave);
    node.addEventListener("focus", () => enter(number, i));
    node.addEventListener("blur", leave);
    node.addEventListener("keydown", (event) => walk(event, number, i));
    return node;
  }

  function walk(event, number, i) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const target = event.key === "Home" ? 0 : event.key === "End" ? cells[number].length - 1 : step ? i + step : null;
    const next = target === null ? undefined : cells[number][target];
    if (!next) return;
    event.preventDefault();
    cells[number].forEach((cell) => { cell.tabIndex = -1; });
    next.tabIndex = 0;
    next.focus();
  }

  // ---- A token's card ------------------------------------------------------------------------

  function enter(number, i) {
    leave();
    const side = state.row.sides[number], cell = cells[number][i], card = at("card");
    cell.classList.add("on");
    cell.setAttribute("aria-describedby", "card");
    const logp = nats(side.logps[i]), ref = nats(side.refs[i]);
    const table = make("table");
    for (const [label, value, extra] of [
      ["log π", minus(logp), percent(logp)],
      ["log π ref", minus(ref), percent(ref)],
      ["implicit reward", signed(side.rewards[i]), "β·nats"],
      ["prefix value after it", signed(side.values[i + 1]), "β·nats"],
    ]) table.append(make("tr", "", make("th", "", label), make("td", extra === "β·nats" ? (value[0] === "−" ? "minus" : "plus") : "", value), make("td", "", make("small", "", extra))));
    const where = make("span", "where", `${i + 1} of ${side.tokens.length}`);
    card.replaceChildren(where, make("div", "name", quoted(side.tokens[i])), table);
    if (side.best) card.append(bestTable(side, i));
    card.hidden = false;
    place(card, cell);
    if (curve) curve(number, i);
  }

  function bestTable(side, i) {
    const table = make("table", "best"), best = side.best[i];
    table.append(make("caption", "", best.length ? "Best alternatives here" : "No plausible alternative here"));
    if (best.length) table.append(make("thead", "", make("tr", "", make("th", "", "token"), make("th", "", "π"), make("th", "", "π ref"), make("th", "", "reward"))));
    for (let j = 0; j < best.length; j += 3) {
      const reward = data.beta * nats(best[j + 1] - best[j + 2]);
      const token = best[j] === undefined ? "" : quoted(data.strings[best[j]]);
      const taken = data.strings[best[j]] === side.tokens[i] ? " ✓" : "";
      table.append(make("tr", "", make("th", "", token + taken), make("td", "", percent(nats(best[j + 1]))),
        make("td", "", percent(nats(best[j + 2]))), make("td", signClass(reward), signed(reward))));
    }
    return table;
  }

  function place(card, cell) {
    const boxes = cell.getClientRects(), box = boxes[0] || cell.getBoundingClientRect();
    const width = card.offsetWidth, height = card.offsetHeight, edge = 8;
    const left = Math.max(edge, Math.min(box.left, innerWidth - width - edge));
    const below = boxes.length ? boxes[boxes.length - 1].bottom + edge : box.bottom + edge;
    const above = box.top - height - edge;
    card.style.left = left + "px";
    card.style.top = (below + height < innerHeight || above < 0 ? below : above) + "px";
  }

  function leave() {
    at("card").hidden = true;
    for (const cell of document.querySelectorAll(".tok.on")) {
      cell.classList.remove("on");
      cell.removeAttribute("aria-describedby");
    }
    if (curve) curve(null);
  }

  // ---- The curve -----------------------------------------------------------------------------

  function plot(figure, row) {
    const width = Math.max(240, figure.clientWidth - 32), height = 150;
    const left = 46, right = 58, top = 12, bottom = 20;
    const longest = Math.max(...row.sides.map((side) => side.tokens.length));
    const all = row.sides.flatMap((side) => side.values);
    let low = Math.min(...all), high = Math.max(...all);
    if (high - low < 1e-9) { low -= 1; high += 1; }
    const x = (t) => left + (t / longest) * (width - left - right);
    const y = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Prefix value along each response" });
    for (const v of ticks(low, high)) {
      svg.append(draw("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), class: Math.abs(v) < 1e-12 ? "zero" : "grid" }));
      svg.append(draw("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, Number(v.toFixed(3)).toString().replace("-", "−")));
    }
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((n) => longest / n <= 10) || 10000;
    for (let t = 0; t <= longest; t += every) svg.append(draw("text", { x: x(t), y: height - 4, "text-anchor": "middle" }, String(t)));
    const ends = row.sides.map((side) => y(side.total));
    spread(ends, 12);
    row.sides.forEach((side, i) => {
      const line = side.values.map((v, t) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
      svg.append(draw("polyline", { points: line, class: "path side" + (i % 4) }));
      svg.append(draw("text", { x: width - right + 6, y: ends[i] + 4 }, signed(side.total, 2)));
    });
    const cross = draw("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
    const dot = draw("circle", { class: "dot", r: 5, visibility: "hidden" });
    svg.append(cross, dot);
    curve = (side, i) => {
      const seen = side === null ? "hidden" : "visible";
      cross.setAttribute("visibility", seen);
      dot.setAttribute("visibility", seen);
      if (side === null) return;
      const cx = x(i + 1);
      cross.setAttribute("x1", cx);
      cross.setAttribute("x2", cx);
      dot.setAttribute("cx", cx);
      dot.setAttribute("cy", y(row.sides[side].values[i + 1]));
    };
    svg.addEventListener("mousemove", (event) => {
      const box = svg.getBoundingClientRect();
      const px = ((event.clientX - box.left) / box.width) * width, py = ((event.clientY - box.top) / box.height) * height;
      const t = Math.max(1, Math.round(((px - left) / (width - left - right)) * longest));
      const near = row.sides.map((side, i) => [i, side]).filter(([, side]) => t <= side.tokens.length);
      if (!near.length) return leave();
      near.sort((a, b) => Math.abs(y(a[1].values[t]) - py) - Math.abs(y(b[1].values[t]) - py));
      enter(near[0][0], t - 1);
    });
    svg.addEventListener("mouseleave", leave);
    const caption = make("figcaption", "", "Prefix value after each token, β·nats");
    row.sides.forEach((side, i) => {
      const sample = draw("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, draw("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: "path side" + (i % 4) }));
      caption.append(make("span", "key", sample, side.name));
    });
    figure.replaceChildren(caption, svg);
  }

  function ticks(low, high) {
    const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
    const size = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
    const found = [];
    for (let n = Math.ceil(low / size); n * size <= high + 1e-12; n++) found.push(n * size);
    return found;
  }

  function spread(places, gap) {
    const order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
    for (let i = 1; i < order.length; i++) places[order[i]] = Math.max(places[order[i]], places[order[i - 1]] + gap);
  }

  // ---- Controls ------------------------------------------------------------------------------

  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = dark.matches ? "dark" : "light";
  dark.addEventListener("change", () => { root.dataset.theme = dark.matches ? "dark" : "light"; });
  at("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });

  let waiting = 0;
  at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  at("disagree").addEventListener("change", refresh);
  at("sort").addEventListener("change", () => { state.sort = SORTS.find((sort) => sort[0] === at("sort").value); state.turned = false; refresh(); });
  at("direction").addEventListener("click", () => { state.turned = !state.turned; refresh(); });
  at("previous").addEventListener("click", () => { state.page -= 1; list(); });
  at("next").addEventListener("click", () => { state.page += 1; list(); });
  at("rows").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -rows.length, End: rows.length }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { leave(); if (event.target === at("search")) at("rows").focus(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "/") { event.preventDefault(); at("search").focus(); }
  });
  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => { const figure = document.querySelector(".curve"); if (figure && state.row) plot(figure, state.row); }, 100);
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
})();

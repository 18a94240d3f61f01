// ---- Prompts and what was found for them -------------------------------------------------------

const data = JSON.parse(at("data").textContent);
const rows = data.rows;
const scored = data.scale > 0;
const state = { found: rows, row: null };
const opening = (row) => row.prompt[row.prompt.length - 1][1].trim();
const searchText = (row) => [...row.prompt.map((turn) => turn[1]), ...row.responses.map((each) => each.text)].join("\n").toLowerCase();

function refresh() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  state.found = rows.filter((row) => words.every((word) => searchText(row).includes(word)));
  at("rows").replaceChildren(...state.found.map(item));
  at("nothing").hidden = state.found.length > 0;
  if (state.found.length && !state.found.includes(state.row)) show(state.found[0]);
  select();
}

function item(row) {
  const node = make("li");
  node.id = "row-" + row.row;
  node.setAttribute("role", "option");
  const what = paint(make("span", "what"), cut(opening(row).replace(/\s+/g, " "), 160));
  const best = row.responses[0];
  const under = make("span", "under", "#" + row.row, make("span", "", plural(row.responses.length, "response")), make("span", "", plural(best.tokens.length, "token")));
  node.append(what, make("span", "number", minus(best.score)), under);
  node.addEventListener("click", () => show(row));
  return node;
}

function select() {
  at("rows").removeAttribute("aria-activedescendant");
  for (const node of at("rows").children) {
    const on = state.row !== null && node.id === "row-" + state.row.row;
    node.setAttribute("aria-selected", on);
    if (on) { at("rows").setAttribute("aria-activedescendant", node.id); node.scrollIntoView({ block: "nearest" }); }
  }
}

function step(by) {
  const here = state.found.indexOf(state.row);
  const row = state.found[Math.max(0, Math.min(state.found.length - 1, here + by))];
  if (row) show(row);
}

function show(row) {
  state.row = row;
  leave();
  const head = make("div", "rowhead");
  if (rows.length > 1) head.append(make("h2", "", "Prompt " + row.row));
  const tree = row.tree ? [treeNode(row.tree)] : [];
  at("detail").replaceChildren(head, promptNode(row), ...row.responses.map(foundNode), ...tree);
  at("announce").textContent = `Prompt ${row.row}, ${plural(row.responses.length, "response")}`;
  select();
  if (rows.length > 1) history.replaceState(null, "", "#row=" + row.row);
}

function promptNode(row) {
  const turns = make("div", "turns");
  turns.tabIndex = 0;
  turns.setAttribute("role", "region");
  turns.setAttribute("aria-label", "Prompt");
  for (const [role, text] of row.prompt) {
    const turn = make("p", "turn");
    if (role) turn.append(make("span", "role", role));
    turns.append(paint(turn, text));
  }
  const node = make("details", "prompt", make("summary", "", "Prompt"), turns);
  node.open = true;
  return node;
}

const ENDS = { eos: "ended by itself", stop: "ended at a stop string", length: "cut off at the limit" };

function foundNode(response, place) {
  const told = ["score " + minus(response.score)];
  if (response.log_ratio !== undefined) told.push("log-ratio " + signed(response.log_ratio, 2));
  if (response.kl !== undefined) told.push("KL " + response.kl.toFixed(2));
  told.push(plural(response.tokens.length, "token"), ENDS[response.finish]);
  for (const [name, value] of Object.entries(response.details)) told.push(name.replace(/_/g, " ") + " " + minus(value));
  const text = make("div", "tokens");
  text.dir = "auto";
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-orientation", "horizontal");
  text.setAttribute("aria-label", `Response ${place + 1}, tokens; use the arrow keys`);
  fill(text, response);
  const node = make("section", place ? "found" : "found first",
    make("header", "", make("h3", "", "Response " + (place + 1)), make("span", "told", told.join(" · "))), text);
  node.setAttribute("aria-label", "Response " + (place + 1));
  return node;
}

// Tokens in reading order; one that shares a character with the token before it is not drawn again.
function fill(text, response) {
  const cells = [];
  let written = 0;
  response.tokens.forEach((token, i) => {
    const [start, end] = response.places[i];
    if (start !== end && end <= written) return;
    if (start > written) text.append(paint(make("span"), response.text.slice(written, start)));
    const node = make("span", "tok");
    if (start === end) { node.classList.add("end"); node.append(quoted(token)); }
    else paintUnit(node, response.text.slice(Math.max(start, written), end));
    written = Math.max(written, end);
    if (response.rewards) tint(node, response.rewards[i]);
    const value = response.rewards ? `, ${signed(response.rewards[i])}` : "";
    node.tabIndex = cells.length ? -1 : 0;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", "false");
    node.setAttribute("aria-label", quoted(token) + value);
    const number = cells.push(node) - 1;
    for (const begin of ["mouseenter", "focus"]) node.addEventListener(begin, () => enter(node, tokenCard(response, i)));
    for (const close of ["mouseleave", "blur"]) node.addEventListener(close, leave);
    node.addEventListener("keydown", (event) => {
      const next = { ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: cells.length - 1 }[event.key];
      if (next === undefined || !cells[next]) return;
      event.preventDefault();
      focusOne(cells, next);
    });
    text.append(node);
  });
}

function focusOne(nodes, number) {
  for (const node of nodes) node.tabIndex = -1;
  nodes[number].tabIndex = 0;
  nodes[number].focus();
}

function tint(node, reward) {
  const strength = Math.min(1, Math.abs(reward) / data.scale) || 0;
  const pole = reward < 0 ? "blamed" : "liked";
  node.classList.add(pole);
  if (strength > 0.02) node.style.setProperty("--tint", `color-mix(in oklab, var(--${pole}) ${(100 * strength ** 0.85).toFixed(1)}%, var(--paper))`);
  if (reward < 0 && strength > 0.25) node.style.setProperty("--under", "var(--blamed-ink)");
}

function line(label, value, className = "", unit = "") {
  return make("tr", "", make("th", "", label), make("td", className, value), make("td", "", make("small", "", unit)));
}

function tokenCard(response, i) {
  const logp = response.logps[i];
  const table = make("table", "", line("log-probability", minus(logp), "", percent(logp)));
  if (response.rewards) {
    const reward = response.rewards[i];
    const sum = response.rewards.slice(0, i + 1).reduce((a, b) => a + b, 0);
    table.append(line("implicit reward", signed(reward), signClass(reward), "β·nats"), line("prefix value after it", signed(sum), signClass(sum), "β·nats"));
  }
  return [make("span", "where", `${i + 1} of ${response.tokens.length}`), make("div", "name", short(quoted(response.tokens[i]), 160)), table];
}

// ---- The card ----------------------------------------------------------------------------------

function enter(node, content) {
  leave();
  const card = at("card");
  node.classList.add("on");
  node.setAttribute("aria-selected", "true");
  node.setAttribute("aria-describedby", "card");
  card.replaceChildren(...content);
  card.hidden = false;
  const box = node.getBoundingClientRect(), edge = 8;
  const left = Math.max(edge, Math.min(box.left, innerWidth - card.offsetWidth - edge));
  const above = box.top - card.offsetHeight - edge;
  card.style.left = left + "px";
  card.style.top = (box.bottom + edge + card.offsetHeight < innerHeight || above < 0 ? box.bottom + edge : above) + "px";
}

function leave() {
  at("card").hidden = true;
  for (const node of document.querySelectorAll(".on")) {
    node.classList.remove("on");
    node.setAttribute("aria-selected", "false");
    node.removeAttribute("aria-describedby");
  }
}

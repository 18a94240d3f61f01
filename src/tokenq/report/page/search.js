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
  node.id = rowId(row);
  node.setAttribute("role", "option");
  const what = paint(make("span", "what"), cut(opening(row).replace(/\s+/g, " "), 160));
  const best = row.responses[0];
  const under = make("span", "under", "#" + row.row, make("span", "", plural(row.responses.length, "response")), make("span", "", plural(best.tokens.length, "token")));
  node.append(what, make("span", "number", minus(best.score)), under);
  node.addEventListener("click", () => show(row));
  return node;
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
    if (response.rewards) tint(node, response.rewards[i], data.scale);
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

function tokenCard(response, i) {
  const logp = response.logps[i];
  const table = make("table", "", line("log-probability", minus(logp), percent(logp)));
  if (response.rewards) {
    const reward = response.rewards[i];
    const sum = response.rewards.slice(0, i + 1).reduce((a, b) => a + b, 0);
    table.append(line("implicit reward", signed(reward), "β·nats", signClass(reward)), line("prefix value after it", signed(sum), "β·nats", signClass(sum)));
  }
  return [make("span", "where", `${i + 1} of ${response.tokens.length}`), make("div", "name", short(quoted(response.tokens[i]), 160)), table];
}

function enter(node, content) {
  leave();
  openCard(node, content);
}

const leave = closeCard;

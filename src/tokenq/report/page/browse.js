// ---- A list of rows, the one that is shown, and a card beside what the pointer is on --------------
// A page that browses has `rows` (each with its number in the data, `row`), `state` (the rows `found`
// and the `row` shown) and functions `refresh`, `show` and `leave`.

const rowId = (row) => "row-" + row.row;

function select() {
  at("rows").removeAttribute("aria-activedescendant");
  for (const node of at("rows").children) {
    const on = state.row !== null && node.id === rowId(state.row);
    node.setAttribute("aria-selected", on);
    if (on) { at("rows").setAttribute("aria-activedescendant", node.id); node.scrollIntoView({ block: "nearest" }); }
  }
}

function step(by) {
  const here = state.found.indexOf(state.row);
  const row = state.found[Math.max(0, Math.min(state.found.length - 1, here + by))];
  if (row) show(row);
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

function tint(node, reward, scale) {
  const strength = Math.min(1, Math.abs(reward) / scale);
  const pole = reward < 0 ? "blamed" : "liked";
  node.classList.add(pole);
  if (strength > 0.02) node.style.setProperty("--tint", `color-mix(in oklab, var(--${pole}) ${(100 * strength ** 0.85).toFixed(1)}%, var(--paper))`);
  if (reward < 0 && strength > 0.25) node.style.setProperty("--under", "var(--blamed-ink)");
}

function focusOne(nodes, number) {
  for (const node of nodes) node.tabIndex = -1;
  nodes[number].tabIndex = 0;
  nodes[number].focus();
}

function line(label, value, unit = "", className = "") {
  return make("tr", "", make("th", "", label), make("td", className, value), make("td", "", make("small", "", unit)));
}

// A node of several lines has its card below the last of them, or above the first.
function openCard(node, content) {
  const card = at("card");
  node.classList.add("on");
  node.setAttribute("aria-selected", "true");
  node.setAttribute("aria-describedby", "card");
  card.replaceChildren(...content);
  card.hidden = false;
  const boxes = node.getClientRects(), box = boxes[0] || node.getBoundingClientRect();
  const width = card.offsetWidth, height = card.offsetHeight, edge = 8;
  const left = Math.max(edge, Math.min(box.left, innerWidth - width - edge));
  const below = (boxes.length ? boxes[boxes.length - 1].bottom : box.bottom) + edge;
  const above = box.top - height - edge;
  card.style.left = left + "px";
  card.style.top = (below + height < innerHeight || above < 0 ? below : above) + "px";
}

function closeCard() {
  at("card").hidden = true;
  for (const node of document.querySelectorAll(".on")) {
    node.classList.remove("on");
    node.setAttribute("aria-selected", "false");
    node.removeAttribute("aria-describedby");
  }
}

// What the page listens to, once; `keys` are further ones of the page's own.
function browse(keys = {}) {
  const all = { j: () => step(1), k: () => step(-1), "/": () => at("search").focus(), t: otherTheme, ...keys };
  let waiting = 0;
  at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
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
    const act = Object.hasOwn(all, event.key) && all[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  if (rows.length <= 1) {
    at("list-pane").hidden = true;
    document.querySelector(".frame").classList.add("single");
  }
}

// The row that the page's address names, if it has it.
function addressed() {
  const wanted = /row=(\d+)/.exec(location.hash);
  return (wanted && rows.find((row) => row.row === Number(wanted[1]))) || null;
}

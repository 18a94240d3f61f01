// ---- What the margin is made up of -----------------------------------------------------------

const FIRST_SEGMENTS = 6;

// Segments with what they add to the margin, the largest first; words that both answers share are
// one line, and so are the end tokens.
function differenceLines(row) {
  const equal = row.segments.filter((segment) => segment.kind === "equal");
  const lines = row.segments.filter((segment) => segment.kind !== "equal").map((segment) => ({ ...segment, parts: [segment] }));
  if (equal.length) {
    const sum = (key) => equal.reduce((total, segment) => total + segment[key], 0);
    lines.push({ kind: "equal", parts: equal, rewards: [0, 1].map((i) => equal.reduce((total, segment) => total + segment.rewards[i], 0)), difference: sum("difference") });
  }
  return lines.sort((a, b) => Math.abs(b.difference) - Math.abs(a.difference));
}

function differenceNode(row, sides) {
  const lines = differenceLines(row), widest = largest(lines.map((line) => Math.abs(line.difference)), 1e-9);
  const ours = row.pair.map((index) => sides[index]);
  const body = make("tbody");
  const table = make("table", "", make("caption", "", "Where the margin comes from"),
    make("thead", "", make("tr", "", make("th", "", "adds"), make("td"), make("th", "", ours[0].name), make("th", "", ours[1].name))), body);
  lines.forEach((line, i) => {
    const node = differenceLine(row, line, ours, widest);
    node.hidden = i >= FIRST_SEGMENTS;
    body.append(node);
  });
  const total = lines.reduce((sum, line) => sum + line.difference, 0);
  const note = make("p", "note", `The parts add up to ${signed(total)}, in β·nats of the implicit reward.`);
  const node = make("section", "difference", table, note);
  node.setAttribute("aria-label", "Where the margin comes from");
  if (lines.length > FIRST_SEGMENTS) {
    const more = make("button", "quiet", `Show all ${lines.length} parts`);
    more.type = "button";
    more.addEventListener("click", () => { for (const each of body.children) each.hidden = false; more.remove(); });
    note.append(" ", more);
  }
  return node;
}

function differenceLine(row, line, sides, widest) {
  const inPart = (i) => (unit) =>
    line.kind === "end" ? Boolean(unit.outside)
      : !unit.outside && line.parts.some((part) => unit.start < part.places[i][1] && unit.end > part.places[i][0] && unit.start < unit.end);
  const named = { equal: "the words that both share", end: "the end of the answer" }[line.kind];
  const cell = (i) => {
    const [start, end] = line.parts[0].places[i];
    const text = named ? make("span", "soft", i ? "" : named) : make("bdi", "", short(quoted(sides[i].text.slice(start, end)), 120) || "—");
    return make("td", "text", text, make("small", "", signed(line.rewards[i], 2)));
  };
  const amount = make("button", "plain " + signClass(line.difference), signed(line.difference, 2));
  amount.type = "button";
  amount.title = "show the place";
  pointAt(amount, row.pair.map((number, i) => [number, inPart(i)]));
  const node = make("tr", "", make("td", "amount", amount), make("td", "", bar(line.difference / widest)), cell(0), cell(1));
  pointAt(node, row.pair.map((number, i) => [number, inPart(i)]));
  return node;
}

// ---- The curve -------------------------------------------------------------------------------

function plot(figure, sides) {
  // Numbers of whole words do not add up along the text.
  const summed = aboutEstimator(state.estimator).spread ? PLAIN : state.estimator;
  const paths = sides.map((side) => valuesOf(rewardsOf(side, summed)));
  const longest = largest(sides.map((side) => side.count), 1);
  const all = paths.flat();
  let low = smallest(all, 0), high = largest(all, 0);
  if (high - low < 1e-9) { low -= 1; high += 1; }
  const width = Math.max(240, figure.clientWidth - 32), height = 150;
  const left = 46, right = 58, top = 12, bottom = 20;
  const x = (t) => left + (t / longest) * (width - left - right);
  const y = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);
  const title = (summed === PLAIN ? "Prefix value" : `Running sum of ${summed}`) + " after each token, " + aboutEstimator(summed).unit;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": described(title, sides, paths) });

  for (const v of ticks(low, high)) {
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), class: Math.abs(v) < 1e-12 ? "zero" : "grid" }));
    svg.append(draw("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, Number(v.toFixed(3)).toString().replace("-", "−")));
  }
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((n) => longest / n <= 10) || 10000;
  for (let t = 0; t <= longest; t += every) svg.append(draw("text", { x: x(t), y: height - 4, "text-anchor": "middle" }, String(t)));

  const totals = paths.map((path) => path[path.length - 1]), labels = totals.map(y);
  spread(labels, 12);
  paths.forEach((path, i) => {
    const points = path.map((v, t) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
    svg.append(draw("polyline", { points, class: "path side" + (i % 4) }));
    svg.append(draw("text", { x: width - right + 6, y: labels[i] + 4 }, signed(totals[i], 2)));
  });
  const cross = draw("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
  const dot = draw("circle", { class: "dot", r: 5, visibility: "hidden" });
  svg.append(cross, dot);
  curve = (side, token) => {
    for (const mark of [cross, dot]) mark.setAttribute("visibility", side === null ? "hidden" : "visible");
    if (side === null) return;
    for (const [name, value] of [["x1", x(token + 1)], ["x2", x(token + 1)]]) cross.setAttribute(name, value);
    dot.setAttribute("cx", x(token + 1));
    dot.setAttribute("cy", y(paths[side][token + 1]));
  };

  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * width, py = ((event.clientY - box.top) / box.height) * height;
    const t = Math.max(1, Math.round(((px - left) / (width - left - right)) * longest));
    const near = paths.map((path, i) => [Math.abs(y(path[t]) - py), i]).filter(([, i]) => t < paths[i].length);
    if (!near.length) return leave();
    const [, number] = near.sort((a, b) => a[0] - b[0])[0];
    const index = drawn[number].findIndex((unit) => unit.tokens.includes(t - 1));
    if (index >= 0) enter(number, index);
  });
  svg.addEventListener("mouseleave", leave);

  const caption = make("figcaption", "", title);
  sides.forEach((side, i) => {
    const sample = draw("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, draw("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: "path side" + (i % 4) }));
    caption.append(make("span", "key", sample, sideName(side)));
  });
  figure.replaceChildren(caption, svg);
}

const described = (title, sides, paths) =>
  title + ": " + sides.map((side, i) => `${sideName(side)} ends at ${signed(paths[i][paths[i].length - 1], 2)}`).join(", ");

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

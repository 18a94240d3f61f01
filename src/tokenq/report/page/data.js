// ---- Numbers: the payload, read one row at a time ------------------------------------------------

const data = JSON.parse(at("data").textContent);
const LEVELS = ["token", "word", "sentence"];
const PLAIN = "plain";
const nats = (whole) => whole / data.nats;

// What the list sorts, filters and shows stands in the payload; tokens are read when a row is shown.
const rows = data.rows.map((row, order) => ({
  ...row, order,
  ordered: "margin" in row,
  length: row.sides.reduce((sum, side) => sum + side.length, 0),
  worst: row.sides.map((side) => side.worst).reduce((a, b) => (b[1] < a[1] ? b : a)),
  smallestP: smallest(row.sides.flatMap((side) => (side.spans || []).map((span) => span.p ?? Infinity)), Infinity),
  marked: row.sides.some((side) => (side.spans || []).some((span) => span.flagged)),
}));
const anyOrder = rows.some((row) => row.ordered);
const anySpans = rows.some((row) => row.sides.some((side) => side.spans));
const marginScale = largest(rows.map((row) => Math.abs(row.margin || 0)), 1e-9);
const estimators = data.estimators.map((about) => about.name);
const aboutEstimator = (name) => data.estimators.find((about) => about.name === name);

const searchText = (row) =>
  (row.search ??= row.prompt.map((turn) => turn[1]).concat(row.sides.map((side) => side.text)).join("\n").toLowerCase());

function readRow(row) {
  row.read ??= row.sides.map(readSide);
  return row.read;
}

// Numbers come as strings, which cost next to nothing until they are read.
const numbers = (text) => (text ? text.split(",").map(Number) : []);

function readSide(packed) {
  const side = { ...packed };
  for (const name of ["places", "outside", "logps", "refs", "words", "sentences"]) side[name] = numbers(packed[name]);
  if (packed.facts) side.facts = Object.fromEntries(Object.entries(packed.facts).map(([name, text]) => [name, numbers(text)]));
  if (packed.best !== undefined) side.best = packed.best.split(";").map(numbers);
  const count = side.length, starts = [], ends = [], tokens = [], outside = new Set();
  let reached = 0;
  for (let i = 0; i < count; i++) {
    const start = reached + side.places[2 * i], end = start + side.places[2 * i + 1];
    if (start === end) { tokens.push(data.strings[side.outside[outside.size]]); outside.add(i); }
    else tokens.push(side.text.slice(start, end));
    starts.push(start);
    ends.push((reached = end));
  }
  const series = { [PLAIN]: side.logps.map((logp, i) => data.beta * nats(logp - side.refs[i])) };
  for (const [name, values] of Object.entries(side.estimates || {})) series[name] = numbers(values).map((whole) => whole / data.reward);
  return { ...side, count, starts, ends, tokens, outside, series, units: {} };
}

const rewardsOf = (side, estimator) => side.series[estimator] || side.series[PLAIN];

function valuesOf(rewards) {
  const values = [0];
  for (const reward of rewards) values.push(values[values.length - 1] + reward);
  return values;
}

// What is coloured as one: a token, or a word, a sentence and what stands between them. A token's
// reward is shared equally by its characters other than blanks (by its blanks if it has no others),
// so that the units' rewards add up to that of the response at every level. Where each token has the
// number of its whole word, a unit has their mean.
function unitsOf(side, level, estimator) {
  return (side.units[level + " " + estimator] ??= level === "token" ? tokenUnits(side, estimator) : stretchUnits(side, level, estimator));
}

function tokenUnits(side, estimator) {
  const rewards = rewardsOf(side, estimator);
  let reached = 0;
  return side.tokens.map((text, i) => {
    if (side.outside.has(i)) return { text, shown: text, start: side.starts[i], end: side.ends[i], tokens: [i], reward: rewards[i], outside: true };
    // Tokens may overlap in a character of which each has some bytes; it is shown once.
    const from = Math.max(side.starts[i], reached);
    const unit = { text, shown: side.text.slice(from, side.ends[i]), start: from, end: Math.max(from, side.ends[i]), tokens: [i], reward: rewards[i] };
    reached = Math.max(reached, side.ends[i]);
    return unit;
  });
}

function stretchUnits(side, level, estimator) {
  const rewards = rewardsOf(side, estimator), units = [], unitAt = new Uint32Array(side.text.length);
  let start = 0;
  for (const length of side[level + "s"]) {
    const text = side.text.slice(start, start + length);
    unitAt.fill(units.length, start, start + length);
    // The blanks around a word are not coloured; a unit without any token is only written.
    const inner = text.trim() || text, from = start + text.indexOf(inner);
    units.push({ text: inner, shown: inner, start: from, end: from + inner.length, tokens: [], reward: 0, bare: true });
    start += length;
  }
  const weights = new Float64Array(units.length);
  rewards.forEach((reward, i) => {
    if (side.outside.has(i)) {
      units.push({ text: side.tokens[i], shown: side.tokens[i], start: side.starts[i], end: side.ends[i], tokens: [i], reward, outside: true });
      return;
    }
    const all = [];
    for (let c = side.starts[i]; c < side.ends[i]; c++) if (!isSecondHalf(side.text, c)) all.push(c);
    const visible = all.filter((c) => !/\s/.test(side.text[c])), sharing = visible.length ? visible : all;
    for (const c of sharing) {
      const unit = units[unitAt[c]];
      unit.reward += reward / sharing.length;
      weights[unitAt[c]] += 1 / sharing.length;
      unit.bare = false;
      if (unit.tokens[unit.tokens.length - 1] !== i) unit.tokens.push(i);
    }
  });
  if (aboutEstimator(estimator).spread) weights.forEach((weight, i) => { if (weight) units[i].reward /= weight; });
  return units;
}

const isSecondHalf = (text, c) =>
  c > 0 && /[\uDC00-\uDFFF]/.test(text[c]) && /[\uD800-\uDBFF]/.test(text[c - 1]);

// Where colours end: the 98th percentile of what is shown. For the tokens of all rows it is given;
// otherwise it is that of an even sample, so that no more rows are read than need be.
const SAMPLE = 100;
const scales = { ["token " + PLAIN]: data.scale || 1e-9 };
function scaleOf(some, level, estimator) {
  const sizes = some.flatMap((row) => readRow(row).flatMap((side) => unitsOf(side, level, estimator).filter((unit) => !unit.bare).map((unit) => Math.abs(unit.reward))));
  sizes.sort((a, b) => a - b);
  return sizes[Math.min(sizes.length - 1, Math.floor(0.98 * sizes.length))] || 1e-9;
}
function pageScale(level, estimator) {
  const sample = () => rows.filter((_, i) => i % Math.ceil(rows.length / SAMPLE) === 0);
  return (scales[level + " " + estimator] ??= scaleOf(sample(), level, estimator));
}

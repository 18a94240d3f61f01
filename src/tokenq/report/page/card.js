// ---- The card of a token, word or sentence ----------------------------------------------------

const LISTED = 12;
// Of one step, both models, in nats; a record need not hold them.
const FACTS = [["entropies", "entropy of π"], ["ref_entropies", "entropy of π ref"], ["divergences", "KL(π ref ‖ π)"]];

function enter(number, index) {
  leave();
  const side = readRow(state.row)[number], unit = drawn[number][index];
  const single = unit.tokens.length === 1;
  const first = unit.tokens[0], last = unit.tokens[unit.tokens.length - 1];
  const place = single ? `${first + 1} of ${side.count}` : `${first + 1}–${last + 1} of ${side.count}`;
  const content = [make("span", "where", place), make("div", "name", short(quoted(unit.text), 160)),
    single ? tokenTable(side, first) : unitTable(side, unit)];
  if (!single) content.push(partsTable(side, unit));
  else if (side.best) content.push(bestTable(side, first));
  for (const span of side.spans || []) {
    if (touches(unit, span)) content.push(make("p", "inspan", `error span${span.p === null ? "" : ", " + pValue(span.p)}${span.flagged ? "" : " (not flagged)"}`));
  }
  openCard(cells[number][index], content);
  if (curve) curve(number, last);
}

const rewardLine = (label, value, estimator) => line(label, signed(value), aboutEstimator(estimator).unit, signClass(value));

function runningLine(side, i) {
  if (aboutEstimator(state.estimator).spread) return "";
  const name = state.estimator === PLAIN ? "prefix value after it" : "running sum after it";
  return rewardLine(name, valuesOf(rewardsOf(side, state.estimator))[i + 1], state.estimator);
}

function tokenTable(side, i) {
  const logp = nats(side.logps[i]), ref = nats(side.refs[i]);
  const table = make("table", "", line("log π", minus(logp), percent(logp)), line("log π ref", minus(ref), percent(ref)));
  for (const name of estimators) {
    if (side.series[name] && (name === PLAIN || name === state.estimator)) {
      table.append(rewardLine(name === PLAIN ? "implicit reward" : name, side.series[name][i], name));
    }
  }
  table.append(runningLine(side, i));
  for (const [name, label] of FACTS) if (side.facts && side.facts[name]) table.append(line(label, nats(side.facts[name][i]).toFixed(3), "nats"));
  return table;
}

function unitTable(side, unit) {
  const name = state.estimator === PLAIN ? "implicit reward" : state.estimator;
  const last = unit.tokens[unit.tokens.length - 1];
  if (aboutEstimator(state.estimator).spread) return make("table", "", rewardLine(name + ", mean", unit.reward, state.estimator));
  return make("table", "", rewardLine(name + ", summed", unit.reward, state.estimator),
    rewardLine("of each token, mean", unit.reward / unit.tokens.length, state.estimator), runningLine(side, last));
}

function partsTable(side, unit) {
  const rewards = rewardsOf(side, state.estimator);
  const table = make("table", "best", make("caption", "", plural(unit.tokens.length, "token")));
  const largest = [...unit.tokens].sort((a, b) => Math.abs(rewards[b]) - Math.abs(rewards[a])).slice(0, LISTED);
  for (const i of unit.tokens.filter((token) => largest.includes(token))) {
    table.append(make("tr", "", make("th", "", quoted(side.tokens[i])), make("td", signClass(rewards[i]), signed(rewards[i]))));
  }
  if (largest.length < unit.tokens.length) table.append(make("tr", "", make("th", "", "…"), make("td", "", `the ${LISTED} largest`)));
  return table;
}

function bestTable(side, i) {
  const best = side.best[i];
  const table = make("table", "best", make("caption", "", best.length ? "Best alternatives here" : "No plausible alternative here"));
  if (best.length) table.append(make("thead", "", make("tr", "", ...["token", "π", "π ref", "reward"].map((name) => make("th", "", name)))));
  for (let j = 0; j < best.length; j += 3) {
    const reward = data.beta * nats(best[j + 1] - best[j + 2]);
    const text = data.strings[best[j]];
    table.append(make("tr", "", make("th", "", quoted(text) + (text === side.tokens[i] ? " ✓" : "")), make("td", "", percent(nats(best[j + 1]))),
      make("td", "", percent(nats(best[j + 2]))), make("td", signClass(reward), signed(reward))));
  }
  return table;
}

function leave() {
  closeCard();
  if (curve) curve(null);
}

// ---- Writing: every text becomes a text node, never markup -----------------------------------

const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

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

function choices(select, options, chosen) {
  for (const [value, label] of options) {
    const option = make("option", "", label);
    option.value = value;
    option.selected = value === chosen;
    select.append(option);
  }
}

// Of lists of any length: too many arguments of a call are an error.
const largest = (numbers, least) => numbers.reduce((a, b) => Math.max(a, b), least);
const smallest = (numbers, most) => numbers.reduce((a, b) => Math.min(a, b), most);

// What rounds to zero has no sign that could be seen.
const rounded = (x, digits) => { const size = Math.abs(x).toFixed(digits); return [x < 0 && Number(size) > 0, size]; };
const signed = (x, digits = 3) => { const [below, size] = rounded(x, digits); return (below ? "−" : "+") + size; };
const minus = (x) => { const [below, size] = rounded(x, 3); return (below ? "−" : "") + size; };
const signClass = (x) => (x < 0 ? "minus" : "plus");
const plural = (count, noun) => count.toLocaleString("en") + " " + noun + (count === 1 ? "" : "s");
// As a p-value is quoted: two digits, and no false zero.
const pValue = (p) => (p < 0.001 ? "p < 0.001" : "p = " + p.toFixed(p < 0.1 ? 3 : 2));
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

function paintUnit(node, text) {
  if (/^ +$/.test(text)) { node.append(make("span", "mark", "␣".repeat(text.length))); return; }
  text.split("\n").forEach((line, i) => {
    if (i) node.append(make("span", "mark", "↵"), "\n");
    if (i && /^ +$/.test(line)) node.append(make("span", "mark", "␣".repeat(line.length)));
    else paint(node, line);
  });
}

const cut = (text, length) => Array.from(text.slice(0, 2 * length)).slice(0, length).join("");
const short = (text, length) => { const head = cut(text, length); return head.length < text.length ? head + "…" : head; };
const quoted = (text) =>
  text.split(HIDDEN).map((part) => (part === "\t" ? "⇥" : part.length === 1 && HIDDEN.test(part) ? code(part) : part))
    .join("").replace(/\n/g, "↵").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));

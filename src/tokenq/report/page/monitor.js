// ---- A key for the theme, and the values under the pointer ------------------------------------------

addEventListener("keydown", (event) => {
  if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) otherTheme();
});

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

// The table below a figure holds what it shows; the pointer picks one of its rows.
function readable(plot) {
  const [left, right, low, high] = plot.dataset.axis.split(" ").map(Number);
  const table = plot.closest("figure").querySelector("table");
  const labels = [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows].map((row) => [Number(row.dataset.step), row]);
  const cursor = make("div", "cursor"), readout = make("div", "readout");
  const away = () => { cursor.remove(); readout.remove(); };
  plot.addEventListener("pointerleave", away);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    if (share < left - 0.03 || share > right + 0.03) { away(); return; }
    const step = low + ((share - left) / (right - left)) * (high - low);
    const [nearest, row] = rows.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
    const place = left + ((nearest - low) / (high - low)) * (right - left);
    cursor.style.left = 100 * place + "%";
    const values = [...row.cells].slice(1).map((cell, i) => [labels[i], cell.textContent.trim()]);
    readout.replaceChildren(make("b", "", "step " + nearest.toLocaleString("en")),
      ...values.filter(([, value]) => value).map(([label, value]) => make("span", "", label + "  " + value)));
    plot.append(cursor, readout);
    const after = place < 0.5;
    readout.style.left = after ? `calc(${100 * place}% + 8px)` : "auto";
    readout.style.right = after ? "auto" : `calc(${100 * (1 - place)}% + 8px)`;
  });
}
for (const plot of document.querySelectorAll(".plot[data-axis]")) readable(plot);

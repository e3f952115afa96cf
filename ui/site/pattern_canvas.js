// A grid of attention patterns, a canvas for each head: what `ui/site/_canvas.py` sends, drawn.

const SHADES = 256;
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** An element with properties; texts come in as text only. */
function make(name, properties, ...children) {
  const one = Object.assign(document.createElement(name), properties);
  one.append(...children);
  return one;
}

/** float16 of 0 to 1 in base64, little-endian, as numbers. */
function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  return Float32Array.from(new Uint16Array(bytes.buffer), (half) =>
    half < 1024 ? half * 2 ** -24 : (1024 + (half & 1023)) * 2 ** ((half >> 10) - 25),
  );
}

/** Every shade as a canvas has it in memory, mixed from evenly spaced colours. */
function mixed(colors) {
  const stops = colors.map((one) => [1, 3, 5].map((at) => parseInt(one.slice(at, at + 2), 16)));
  const shades = Array.from({ length: SHADES }, (_, shade) => {
    const place = (shade / (SHADES - 1)) * (stops.length - 1);
    const from = Math.min(Math.floor(place), stops.length - 2);
    const parts = stops[from].map((one, at) => one + (stops[from + 1][at] - one) * (place - from));
    return [...parts, 255];
  });
  return new Uint32Array(Uint8ClampedArray.from(shades.flat()).buffer);
}

/** Where the attention of a query to a key stands: rows up to the diagonal, one after another. */
const at = (query, key) => (query * (query + 1)) / 2 + key;

function paint(canvas, values, count, shades) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(count, count);
  const pixels = new Uint32Array(image.data.buffer);
  for (let query = 0; query < count; query++) {
    for (let key = 0; key <= query; key++) {
      pixels[query * count + key] = shades[Math.round(values[at(query, key)] * (SHADES - 1))];
    }
  }
  context.putImageData(image, 0, 0);
}

export default function ({ parentElement, data, setTriggerValue }) {
  const shades = mixed(data.colors);
  const spoken = parentElement.querySelector(".spoken");
  const tip = parentElement.querySelector(".tip");
  const cell = parentElement.querySelector(".cell");

  const hide = () => {
    tip.hidden = cell.hidden = true;
  };

  function show(canvas, values, section, name, [query, key]) {
    const count = section.tokens.length;
    const box = canvas.getBoundingClientRect();
    const [left, top, side] = [box.left + 1, box.top + 1, (box.width - 2) / count];
    const lines = [
      `${name} of ${section.model}`,
      `Query ${section.tokens[query]}`,
      `Key ${section.tokens[key]}`,
      key > query ? "No query attends to later keys" : `Attention ${values[at(query, key)].toFixed(4)}`,
    ];
    tip.replaceChildren(...lines.map((textContent) => make("div", { textContent })));
    tip.hidden = cell.hidden = false;
    Object.assign(cell.style, {
      height: `${side}px`,
      left: `${left + key * side}px`,
      top: `${top + query * side}px`,
      width: `${side}px`,
    });
    const right = left + (key + 1) * side + 12;
    const below = top + (query + 1) * side + 12;
    tip.style.left = `${Math.max(0, Math.min(right, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : top + query * side - tip.offsetHeight - 12}px`;
    return lines.join(", ");
  }

  function panel(section, { name, href, numbers }) {
    const count = section.tokens.length;
    const values = decoded(numbers);
    const open = () => setTriggerValue("head", { model: section.model, name });
    const link = make("a", { href, tabIndex: -1, textContent: name });
    link.addEventListener("click", (event) => {
      // A new tab is the browser's own matter.
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open();
    });
    const canvas = make("canvas", { height: count, tabIndex: 0, width: count });
    canvas.setAttribute("role", "img");
    canvas.setAttribute(
      "aria-label",
      `${name} of ${section.model}: attention of ${count} queries, down, to keys, across. ` +
        "Arrow keys go over it, Enter opens the head.",
    );
    paint(canvas, values, count, shades);
    let here = [0, 0];
    const limit = (place) => Math.max(0, Math.min(place, count - 1));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const side = (box.width - 2) / count;
      here = [event.clientY - box.top - 1, event.clientX - box.left - 1].map((far) =>
        limit(Math.floor(far / side)),
      );
      show(canvas, values, section, name, here);
    });
    canvas.addEventListener("pointerleave", hide);
    canvas.addEventListener("blur", hide);
    canvas.addEventListener("click", open);
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter") open();
      if (event.key === "Escape") hide();
      const move = MOVES[event.key];
      if (move === undefined) return;
      event.preventDefault();
      here = here.map((place, axis) => limit(place + move[axis]));
      spoken.textContent = show(canvas, values, section, name, here);
    });
    const figure = make("figure", { className: "panel" }, link, canvas);
    figure.style.maxWidth = `${section.side}px`;
    return figure;
  }

  const ramp = make("i", {});
  ramp.style.background = `linear-gradient(to right, ${data.colors.join(", ")})`;
  const legend = make("div", { className: "legend" }, "Attention 0", ramp, "1");
  const grids = data.sections.flatMap((section) => {
    const panels = make(
      "div",
      { className: "panels" },
      ...section.panels.map((one) => panel(section, one)),
    );
    panels.style.gridTemplateColumns = `repeat(${section.across}, minmax(0, ${data.widest}px))`;
    return [make("div", { className: "model", textContent: section.model }), panels];
  });
  hide();
  parentElement.querySelector(".drawn").replaceChildren(legend, ...grids);
  // What is fixed to the window would stay where it was.
  addEventListener("scroll", hide, true);
  return () => removeEventListener("scroll", hide, true);
}

"use strict";
// What the page can do beyond being read: sort, filter, show the cells behind a number, plot, and change colours.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const draw = (tag, attributes = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // --- colours -------------------------------------------------------------------------------------------
  const root = document.documentElement;
  const theme = make("button", { type: "button", class: "theme" });
  const paint = (name) => {
    root.dataset.theme = name;
    root.style.colorScheme = name;
    theme.textContent = name === "dark" ? "Light colours" : "Dark colours";
  };
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  theme.addEventListener("click", () => {
    chosen = true;
    paint(root.dataset.theme === "dark" ? "light" : "dark");
  });
  prefersDark.addEventListener("change", () => chosen || paint(prefersDark.matches ? "dark" : "light"));
  paint(prefersDark.matches ? "dark" : "light");
  const unfold = make("button", { type: "button", class: "theme" }, "Unfold all");
  const folds = [...document.querySelectorAll("details.fold")];
  const fold = (open) => {
    for (const details of folds) details.open = open;
    unfold.textContent = open ? "Fold all" : "Unfold all";
  };
  unfold.addEventListener("click", () => fold(!folds.every((details) => details.open)));
  addEventListener("beforeprint", () => fold(true));
  document.querySelector("header").append(theme, unfold);

  // --- tables --------------------------------------------------------------------------------------------
  const worth = (cell) => {
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    const text = cell.textContent.trim();
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const isHole = (cell) => cell.classList.contains("hole") || ["", "-"].includes(cell.textContent.trim());
  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const keys = new Map(rows.map((row) => [row, worth(row.cells[column])]));
    rows.sort((a, b) => {
      const holes = isHole(a.cells[column]) - isHole(b.cells[column]);
      return holes || direction * compare(keys.get(a), keys.get(b));
    });
    body.append(...rows);
  };
  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        // Larger is better in most columns of numbers, so those begin with the largest.
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        sort(table, column, order === "ascending" ? 1 : -1);
      });
    });
  };
  const LONG = 6; // tables with fewer lines need no filter
  const picked = { rows: null };
  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < LONG && table.id !== "cells") return;
    const input = make("input", { type: "search" });
    const count = make("output");
    const name = table.caption.textContent;
    const label = make("label", {}, "Filter", input);
    input.setAttribute("aria-label", `Filter ${name}`);
    const update = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const within = table.id !== "cells" || picked.rows === null || picked.rows.has(row);
        row.hidden = !within || !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = shown === rows.length ? `${rows.length} lines` : `${shown} of ${rows.length} lines`;
    };
    input.addEventListener("input", update);
    table.closest(".table").before(make("div", { class: "tools" }, label, count));
    table.addEventListener("refilter", update);
    update();
  };
  for (const table of document.querySelectorAll("table")) {
    sortable(table);
    filterable(table);
  }
  // A region that scrolls must be reachable by keyboard.
  const reachable = () => {
    for (const region of document.querySelectorAll(".table")) {
      const scrolls = region.scrollWidth > region.clientWidth;
      if (!scrolls) {
        for (const name of ["tabindex", "role", "aria-label"]) region.removeAttribute(name);
        continue;
      }
      region.setAttribute("tabindex", "0");
      region.setAttribute("role", "region");
      region.setAttribute("aria-label", region.querySelector("table").caption.textContent);
    }
  };
  reachable();
  addEventListener("resize", reachable);
  for (const details of folds) details.addEventListener("toggle", reachable);

  // --- pictures, enlarged --------------------------------------------------------------------------------
  const enlarge = (figure, index) => {
    const close = make("button", { type: "button", class: "close" }, "Close");
    const caption = figure.querySelector("figcaption").cloneNode(true);
    const strip = figure.querySelector(".strip").cloneNode(true);
    for (const twin of strip.querySelectorAll("[id]")) twin.removeAttribute("id"); // the page has it already
    for (const button of strip.querySelectorAll("button")) button.replaceWith(make("span", { class: "picture" }, ...button.childNodes));
    const scale = figure.closest("section").querySelector(".scale").cloneNode(true);
    const zoom = make("dialog", { class: "zoom", "aria-label": caption.textContent }, close, caption, strip, scale);
    document.body.append(zoom);
    close.addEventListener("click", () => zoom.close());
    zoom.addEventListener("click", (event) => (event.target === zoom || event.target.closest("a")) && zoom.close());
    zoom.addEventListener("close", () => zoom.remove());
    zoom.showModal();
    const picked = strip.children[index];
    picked.classList.add("chosen");
    picked.scrollIntoView({ block: "center" });
  };
  for (const figure of document.querySelectorAll(".exhibit")) {
    figure.querySelectorAll(".strip > li").forEach((item, index) => {
      const picture = item.querySelector(".picture");
      if (!picture) return;
      const words = `Enlarge ${picture.querySelector("img").alt}`;
      const button = make("button", { type: "button", class: "picture", "aria-label": words }, ...picture.childNodes);
      button.addEventListener("click", () => enlarge(figure, index));
      picture.replaceWith(button);
    });
  }

  // --- from a number to its cells ------------------------------------------------------------------------
  const cells = document.getElementById("cells");
  const behind = document.getElementById("behind");
  const words = document.querySelector("#all-cells input");
  const cellRows = cells ? [...cells.tBodies[0].rows] : []; // a report of sweeps alone has none
  const pick = (indices, what) => {
    picked.rows = indices === null ? null : new Set(indices.map((i) => cellRows[i]));
    words.value = ""; // else the words would hide some of the cells that were asked for
    cells.dispatchEvent(new Event("refilter"));
    behind.replaceChildren();
    document.getElementById("all-cells").open = true;
    if (indices === null) return;
    const all = make("button", { type: "button" }, "Show all cells");
    all.addEventListener("click", () => pick(null));
    behind.append(`${indices.length} ${indices.length === 1 ? "cell" : "cells"} behind ${what}. `, all);
  };
  const open = () => {
    const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    const around = target?.closest("details");
    if (around) around.open = true;
    if (target instanceof HTMLTableRowElement && target.hidden) pick(null);
    if (around) target.scrollIntoView();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-group]");
    if (!link) return;
    const line = link.closest("tr");
    const column = line && link.closest("table").tHead.rows[0].cells[link.closest("td, th").cellIndex];
    const names = line ? [line.querySelector("th")?.textContent, column.textContent] : [];
    pick(data.groups[Number(link.dataset.group)], [link.textContent, ...names].filter(Boolean).join(" · "));
  });
  addEventListener("hashchange", open);
  open();

  // --- accuracy against latency --------------------------------------------------------------------------
  const chart = document.getElementById("chart");
  if (chart) plot(chart);

  function plot(place) {
    // Areas of about 100 square units around the origin, in the order of the figures' markers.
    const GLYPHS = [
      "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0", "M-5.3,-5.3h10.6v10.6h-10.6z", "M0,-7L6.6,5H-6.6z", "M0,-7.4L6,0L0,7.4L-6,0z",
      "M0,7L6.6,-5H-6.6z", "M-2.2,-6.4h4.4v4.2h4.2v4.4h-4.2v4.2h-4.4v-4.2h-4.2v-4.4h4.2z",
      "M-6.4,-3.4L-3.4,-6.4L0,-3L3.4,-6.4L6.4,-3.4L3,0L6.4,3.4L3.4,6.4L0,3L-3.4,6.4L-6.4,3.4L-3,0z",
      "M0,-8L2.2,-2.6L8,-2.4L3.5,1.2L5,7L0,3.7L-5,7L-3.5,1.2L-8,-2.4L-2.2,-2.6z",
    ];
    const glyph = (mark, hollow) => draw("path", {
      d: GLYPHS[(mark + Math.floor(mark / 8)) % 8], class: `glyph s${mark % 8}${hollow ? " hollow" : ""}`,
    });
    const unique = (values) => [...new Set(values)];
    const off = new Set();
    const controls = make("div", { class: "controls" });
    const legend = make("div", { class: "legend", role: "group", "aria-label": "Methods shown" });
    const tip = make("div", { class: "tip", id: "tip", role: "tooltip" });
    tip.hidden = true;
    let svg = draw("svg");
    place.append(controls, legend, svg, tip);
    const state = { section: 0, place: "", precision: "", batch: 0, metric: 0 };
    const select = (label, key, options) => {
      const box = make("select");
      for (const [value, text] of options) box.append(make("option", { value }, text));
      if (!options.some(([value]) => value === state[key])) state[key] = options[0][0];
      box.value = String(state[key]);
      box.addEventListener("change", () => {
        state[key] = options[box.selectedIndex][0];
        update();
        [...controls.querySelectorAll("select")].find((other) => other.dataset.key === key)?.focus();
      });
      box.dataset.key = key;
      controls.append(make("label", {}, label, box));
    };
    const ms = (value) => `${value.toPrecision(3)} ms`;
    const said = (point) => {
      const [mean, deviation] = point.accuracy[state.metric];
      const spread = deviation === null ? "" : ` ± ${deviation.toFixed(2)}`;
      return [
        point.entry, `${data.metrics[state.metric]} ${mean.toFixed(2)}${spread} %`,
        `${ms(point.p50)} median, ${ms(point.p90)} 90th percentile`,
        point.p99 === null ? `99th percentile: ${data.few}` : `${ms(point.p99)} 99th percentile`,
        `${point.images_per_s.toPrecision(3)} images/s`,
        ...(point.off_front ? [`not on the front: ${point.off_front}`] : []),
      ];
    };
    const ticks = (low, high) => {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
        const factors = Math.log10(high / low) > 1.3 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
        for (const factor of factors) found.push(Number((factor * 10 ** power).toPrecision(2)));
      }
      const within = found.filter((value) => value >= low && value <= high);
      return within.length < 2 ? steps(low, high) : within; // times may be closer than these lie
    };
    const steps = (low, high) => {
      const raw = (high - low) / 5;
      const size = [1, 2, 5, 10].map((n) => n * 10 ** Math.floor(Math.log10(raw))).find((n) => n >= raw);
      const found = [];
      for (let value = Math.ceil(low / size) * size; value <= high; value += size) found.push(Number(value.toFixed(6)));
      return found;
    };

    function update() {
      controls.replaceChildren();
      select("section", "section", unique(data.points.map((p) => p.section)).map((i) => [i, data.sections[i]]));
      const inSection = data.points.filter((p) => p.section === state.section);
      select("device", "place", unique(inSection.map((p) => p.place)).map((name) => [name, name]));
      const onDevice = inSection.filter((p) => p.place === state.place);
      select("precision", "precision", unique(onDevice.map((p) => p.precision)).map((name) => [name, name]));
      const inPrecision = onDevice.filter((p) => p.precision === state.precision);
      select("batch size", "batch", unique(inPrecision.map((p) => p.batch)).sort((a, b) => a - b).map((n) => [n, String(n)]));
      const timed = inPrecision.filter((p) => p.batch === state.batch);
      const measured = data.metrics.map((_, i) => i).filter((i) => timed.some((p) => p.accuracy[i] !== null));
      select("metric", "metric", measured.map((i) => [i, data.metrics[i]]));
      const points = timed.filter((p) => p.accuracy[state.metric] !== null);
      legend.replaceChildren(...points.map((point) => {
        const button = make("button", { type: "button", "aria-pressed": String(!off.has(point.entry)) });
        button.append(draw("svg", { viewBox: "-9 -9 18 18", "aria-hidden": "true" }, glyph(point.mark, point.off_front)), point.entry);
        button.addEventListener("click", () => {
          if (!off.delete(point.entry)) off.add(point.entry);
          button.setAttribute("aria-pressed", String(!off.has(point.entry)));
          redraw(points);
        });
        return button;
      }));
      redraw(points);
    }

    function redraw(all) {
      const points = all.filter((p) => !off.has(p.entry));
      const narrow = place.clientWidth < 560;
      const [width, height, left, right, top, bottom] = narrow ? [560, 480, 84, 20, 16, 66] : [832, 440, 64, 20, 16, 50];
      const next = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${data.metrics[state.metric]} against latency` });
      tip.hidden = true;
      if (points.length) fill(next, points, { width, height, left, right, top, bottom });
      else next.append(draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "All methods are switched off."));
      svg.replaceWith(next);
      svg = next;
    }

    function fill(target, points, box) {
      const spread = (p) => p.accuracy[state.metric][1] ?? 0;
      const value = (p) => p.accuracy[state.metric][0];
      const times = points.map((p) => p.p50);
      const reach = Math.max(1.15, (Math.max(...times) / Math.min(...times)) ** 0.1);
      const [fast, slow] = [Math.min(...times) / reach, Math.max(...times) * reach];
      const lowest = Math.min(...points.map((p) => value(p) - spread(p)));
      const highest = Math.max(...points.map((p) => value(p) + spread(p)));
      const room = Math.max(0.5, (highest - lowest) * 0.1);
      const [low, high] = [lowest - room, highest + room];
      const x = (ms) => box.left + (Math.log(ms / fast) / Math.log(slow / fast)) * (box.width - box.left - box.right);
      const y = (percent) => box.top + ((high - percent) / (high - low)) * (box.height - box.top - box.bottom);
      const floor = box.height - box.bottom;
      let last = -1e9;
      for (const ms of ticks(fast, slow)) {
        if (x(ms) - last < 44) continue;
        last = x(ms);
        target.append(
          draw("line", { class: "grid", x1: last, x2: last, y1: box.top, y2: floor }),
          draw("text", { x: last, y: floor + (box.bottom > 55 ? 24 : 18), "text-anchor": "middle" }, String(ms)),
        );
      }
      for (const percent of steps(low, high)) {
        target.append(
          draw("line", { class: "grid", x1: box.left, x2: box.width - box.right, y1: y(percent), y2: y(percent) }),
          draw("text", { x: box.left - 8, y: y(percent) + 5, "text-anchor": "end" }, String(percent)),
        );
      }
      const middle = (box.top + floor) / 2;
      target.append(
        draw("text", { x: (box.left + box.width - box.right) / 2, y: box.height - 10, "text-anchor": "middle" }, "median ms per batch (log)"),
        draw("text", { x: 18, y: middle, "text-anchor": "middle", transform: `rotate(-90 18 ${middle})` }, `${data.metrics[state.metric]}, %`),
      );
      const front = [];
      for (const point of points.filter((p) => !p.off_front).sort((a, b) => a.p50 - b.p50 || value(b) - value(a))) {
        if (!front.length || value(point) > value(front.at(-1))) front.push(point);
      }
      const path = front.map((p, i) => (i ? `H${x(p.p50)}V${y(value(p))}` : `M${x(p.p50)},${y(value(p))}`)).join("");
      if (path) target.append(draw("path", { class: "front", d: path }));
      for (const point of points) {
        const [cx, cy] = [x(point.p50), y(value(point))];
        const lines = said(point);
        const group = draw("g", { class: "point", tabindex: "0", role: "img", "aria-label": lines.join(", ") });
        if (spread(point)) group.append(draw("line", { class: `bar s${point.mark % 8}`, x1: cx, x2: cx, y1: y(value(point) - spread(point)), y2: y(value(point) + spread(point)) }));
        const shape = glyph(point.mark, point.off_front);
        shape.setAttribute("transform", `translate(${cx} ${cy}) scale(${box.bottom > 55 ? 1.5 : 1.1})`);
        group.append(shape, draw("circle", { class: "halo", cx, cy, r: 14 }));
        const show = () => {
          tip.replaceChildren(make("strong", {}, lines[0]), ...lines.slice(1).flatMap((line) => [make("br"), line]));
          tip.hidden = false;
          const scale = svg.clientWidth / box.width;
          const [px, py] = [cx * scale + svg.getBoundingClientRect().left - place.getBoundingClientRect().left, cy * scale + svg.getBoundingClientRect().top - place.getBoundingClientRect().top];
          tip.style.left = `${Math.max(0, Math.min(px + 14, place.clientWidth - tip.offsetWidth))}px`;
          tip.style.top = `${py + 18}px`;
        };
        const hide = () => { tip.hidden = true; };
        group.addEventListener("mouseenter", show);
        group.addEventListener("focus", show);
        group.addEventListener("mouseleave", hide);
        group.addEventListener("blur", hide);
        group.addEventListener("keydown", (event) => event.key === "Escape" && hide());
        target.append(group);
      }
    }
    update();
    let narrow = place.clientWidth < 560;
    addEventListener("resize", () => {
      if (narrow === place.clientWidth < 560) return;
      narrow = !narrow;
      update();
    });
  }
})();

"use strict";
/* Show images with a slider, or beside each other, with one zoom and one position for all.

   createViewer(stage, { onChange, drags }): `stage` is the element to fill. `drags` is what a drag moves: "boundary", or
   "image" if it is larger than the stage and the drag does not start at the boundary. Ctrl and the middle button always
   move the image. `onChange` is called after each change of the view with { share, zoom, fit, slides }; `fit` is
   the zoom that fits the stage, 0 without images.

   show(panes, { size, beside }): each pane is { name, src, lack }: a URL, or why there is none. Two images are shown with
   a slider, unless `beside`. `size` is the width and height in pixels that zoom 1 refers to, and defaults to that of the
   largest image; smaller ones are scaled up to it. */
function createViewer(stage, { onChange = () => {}, drags = "boundary" } = {}) {
  // zoom 0 fits the stage; otherwise it is the number of device pixels per image pixel. x and y are the image point in
  // the middle of the stage, as shares of its size.
  const state = { split: 0.5, zoom: 0, x: 0.5, y: 0.5 };
  const limit = (low, value, high) => Math.max(low, Math.min(high, value));
  let size = { width: 1, height: 1 }, cells = [], slides = false, shown = 0;

  const element = (kind, name, parent, text) => {
    const made = document.createElement(kind);
    made.className = name;
    if (text !== undefined) made.textContent = text;
    parent?.append(made);
    return made;
  };
  const image = (parent, { name, src }) => {
    const made = element("img", "", parent);
    Object.assign(made, { alt: name, draggable: false, src });
    return made;
  };

  async function show(panes, { size: given, beside = false } = {}) {
    const asked = ++shown;
    stage.setAttribute("aria-busy", "true");
    slides = panes.length === 2 && !beside && panes.every((pane) => pane.src);
    const made = (slides ? [panes] : panes.map((pane) => [pane])).map((views) => {
      const pane = element("div", "pane"), sheet = element("div", "sheet", pane), cell = { pane, sheet };
      if (slides) {
        cell.under = image(sheet, views[1]);
        cell.clip = element("div", "clip", sheet);
        image(cell.clip, views[0]);
        cell.edge = element("div", "edge", sheet);
        cell.edge.setAttribute("aria-hidden", "true");
        element("i", "", cell.edge);
      } else if (views[0].src) image(sheet, views[0]);
      else element("p", "lack", pane, views[0].lack ?? "");
      views.forEach(({ name }, i) => element("span", i ? "tag right" : "tag", pane, name));
      return cell;
    });
    const images = made.flatMap(({ sheet }) => [...sheet.querySelectorAll("img")]), lost = new Set();
    await Promise.all(images.map((each) => each.decode().catch(() => lost.add(each))));
    if (asked !== shown) return;
    for (const { pane, sheet } of made) {
      const missing = images.filter((each) => lost.has(each) && sheet.contains(each));
      // Without any image, no boundary crosses the text.
      for (const each of missing.length === sheet.querySelectorAll("img").length ? [sheet] : missing) each.style.visibility = "hidden";
      const names = missing.map((each) => each.alt).reverse().join(" and ");
      if (names) element("p", "lack", pane, `${names} cannot be shown. If this page was moved, move its images too.`);
    }
    const largest = images.reduce((a, b) => (b.naturalWidth > (a?.naturalWidth ?? 0) ? b : a), null);
    size = given ?? { width: largest?.naturalWidth || 1, height: largest?.naturalHeight || 1 };
    cells = made;
    stage.replaceChildren(...cells.map(({ pane }) => pane));
    stage.removeAttribute("aria-busy");
    stage.classList.add("viewer");
    stage.classList.toggle("slides", slides);
    stage.setAttribute("role", slides ? "slider" : "group");
    stage.setAttribute("aria-label", slides ? "Boundary between left and right, in percent" : panes.map((p) => p.name).join(", "));
    place();
  }

  /* Place the panes in as many columns as show the images largest. */
  function arrange() {
    const fits = (columns) => {
      const rows = Math.ceil(cells.length / columns);
      return Math.min(stage.clientWidth / columns / size.width, stage.clientHeight / rows / size.height);
    };
    const columns = cells.map((_, i) => i + 1).reduce((best, each) => (fits(each) > fits(best) ? each : best), 1);
    stage.style.gridTemplate = `repeat(${Math.ceil(cells.length / columns)}, minmax(0, 1fr)) / repeat(${columns}, minmax(0, 1fr))`;
  }

  function measure() {
    const { clientWidth: width, clientHeight: height } = cells[0].pane, dense = window.devicePixelRatio || 1;
    const fit = Math.min(width / size.width, height / size.height);
    return { width, height, dense, fit, scale: state.zoom ? state.zoom / dense : fit };
  }

  function place() {
    if (!cells.length) return;
    arrange();
    const { width: roomX, height: roomY, dense, fit, scale } = measure();
    const width = size.width * scale, height = size.height * scale;
    const centre = (share, room, length) => (length <= room ? 0.5 : limit(room / 2 / length, share, 1 - room / 2 / length));
    state.x = centre(state.x, roomX, width);
    state.y = centre(state.y, roomY, height);
    const left = roomX / 2 - state.x * width, top = roomY / 2 - state.y * height;
    for (const { sheet, clip, under, edge } of cells) {
      sheet.style.width = `${width}px`;
      sheet.style.height = `${height}px`;
      sheet.style.transform = `translate(${left}px, ${top}px)`;
      sheet.classList.toggle("pixels", scale * dense >= 2);
      if (!clip) continue;
      // The boundary belongs to the stage, so it stays visible when the image is moved.
      const at = Math.max(0, left) + state.split * Math.min(width, roomX) - left;
      // Each is clipped, because the other one would show through transparent parts.
      clip.style.clipPath = `inset(0 ${Math.max(0, width - at)}px 0 0)`;
      under.style.clipPath = `inset(0 0 0 ${Math.max(0, at)}px)`;
      edge.style.left = `${at}px`;
    }
    const share = Math.round(state.split * 100), values = { valuemin: 0, valuemax: 100, valuenow: share };
    for (const [name, value] of Object.entries(values)) {
      if (slides) stage.setAttribute(`aria-${name}`, String(value));
      else stage.removeAttribute(`aria-${name}`);
    }
    onChange({ share, zoom: state.zoom, fit: stage.querySelector("img") ? fit * dense : 0, slides });
  }

  const paneAt = (event) => (event?.target.closest?.(".pane") ?? cells[0].pane).getBoundingClientRect();

  /* Zoom, keeping the image point under the pointer, or in the middle without one. */
  function zoomTo(zoom, event) {
    if (!cells.length) return;
    const before = measure().scale, box = paneAt(event);
    const away = event ? { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 } : { x: 0, y: 0 };
    state.zoom = zoom;
    const { scale } = measure(), change = 1 / before - 1 / scale;
    state.x += (away.x * change) / size.width;
    state.y += (away.y * change) / size.height;
    place();
  }

  function move(x, y) {
    const { scale } = measure();
    state.x -= x / scale / size.width;
    state.y -= y / scale / size.height;
    place();
  }

  const slide = (share) => { state.split = limit(0, share, 1); place(); };
  const larger = (event) => zoomTo(Math.min(16, state.zoom ? state.zoom * 2 : 1), event);
  const smaller = (event) => zoomTo(state.zoom > 1 ? state.zoom / 2 : 0, event);
  const isLarge = () => {
    const { width, height, scale } = measure();
    return size.width * scale > width + 1 || size.height * scale > height + 1;
  };

  const pointers = new Map();
  let drag = "";
  const splitAt = (event) => {
    const box = cells[0].pane.getBoundingClientRect(), sheet = cells[0].sheet.getBoundingClientRect();
    const start = Math.max(box.left, sheet.left), end = Math.min(box.right, sheet.right);
    slide((event.clientX - start) / Math.max(1, end - start));
  };
  const isAtEdge = (event) => slides && Math.abs(event.clientX - cells[0].edge.getBoundingClientRect().left) < 24;
  stage.addEventListener("pointerdown", (event) => {
    if (!cells.length) return;
    pointers.set(event.pointerId, event);
    stage.setPointerCapture(event.pointerId);
    const moves = event.ctrlKey || event.button === 1 || !slides || (drags === "image" && isLarge() && !isAtEdge(event));
    drag = pointers.size > 1 ? "pinch" : moves ? "image" : "boundary";
    if (drag === "boundary") splitAt(event);
    else event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    pointers.set(event.pointerId, event);
    if (drag === "boundary") splitAt(event);
    else if (drag === "image") move(event.clientX - before.clientX, event.clientY - before.clientY);
    else {
      const other = [...pointers.values()].find((each) => each.pointerId !== event.pointerId);
      const far = (each) => Math.max(1, Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY));
      const { dense, fit, scale } = measure(), zoom = limit(fit * dense, scale * dense * (far(event) / far(before)), 16);
      zoomTo(zoom <= fit * dense ? 0 : zoom, { target: event.target, clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 });
    }
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => { pointers.delete(event.pointerId); drag = pointers.size ? drag : ""; });
  stage.addEventListener("wheel", (event) => {
    if (!cells.length || !(event.ctrlKey || state.zoom)) return;
    event.preventDefault();
    if (event.ctrlKey) (event.deltaY < 0 ? larger : smaller)(event);
    else move(-event.deltaX, -event.deltaY);
  }, { passive: false });
  window.addEventListener("resize", place);

  const pan = (x, y) => () => move(x * 80, y * 80);
  /* What keys do; with Shift, arrows move the image. */
  const keys = {
    ArrowLeft: () => slide(state.split - 0.02), ArrowRight: () => slide(state.split + 0.02), Home: () => slide(0), End: () => slide(1),
    "Shift+ArrowLeft": pan(1, 0), "Shift+ArrowRight": pan(-1, 0), "Shift+ArrowUp": pan(0, 1), "Shift+ArrowDown": pan(0, -1),
    "+": () => larger(), "=": () => larger(), "-": () => smaller(), 0: () => zoomTo(0),
  };
  return { show, place, slide, larger, smaller, zoomTo, keys, state };
}

/* The action of a key press in a table such as a viewer's keys, by the key's name or its code, for digits; undefined for keys that belong to a field or the browser. */
function actionOf(event, keys) {
  if (event.target.matches?.("select, textarea, input") || event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const shifted = event.shiftKey ? keys[`Shift+${event.key}`] ?? keys[`Shift+${event.code}`] : undefined;
  return shifted ?? keys[event.key] ?? keys[event.code];
}

/* Name a zoom: "fit, 0.5×" or "2×". */
function zoomText({ zoom, fit }) {
  return zoom ? `${+zoom.toPrecision(2)}×` : fit ? `fit, ${+fit.toPrecision(2)}×` : "fit";
}

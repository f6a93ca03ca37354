"use strict";
(() => {
  const { images, metrics, models } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const stage = at("stage"), sheet = at("sheet"), under = at("under"), over = at("over");
  // zoom 0 fits the stage; otherwise it is the number of device pixels per image pixel.
  const state = { image: 0, left: "", right: "", split: 0.5, zoom: 0, x: 0, y: 0 };
  let size = { width: 1, height: 1 };

  const views = () => Object.keys(images[state.image]?.views ?? {});

  function fill(select, names, chosen) {
    select.replaceChildren(...names.map((name, i) => new Option(i < 9 ? `${i + 1} ${name}` : name, name)));
    select.value = chosen;
  }

  // If this image lacks the chosen view, show another one; the choice is kept for the next image.
  const present = (choice, fallback) => (views().includes(choice) ? choice : fallback);

  async function show() {
    if (!images.length) { at("message").textContent = "This report has no images."; return; }
    const names = views(), image = images[state.image];
    const left = present(state.left, names[0]), right = present(state.right, names[names.length - 1]);
    fill(at("left"), names, left);
    fill(at("right"), names, right);
    at("image").value = String(state.image);
    at("leftTag").textContent = left ?? "";
    at("rightTag").textContent = right ?? "";
    at("message").textContent = Object.entries(image.errors).map(([m, e]) => `${m}: ${e}`).join(" · ");
    scores(image);
    for (const [i, thumb] of [...at("strip").children].entries()) {
      thumb.setAttribute("aria-selected", String(i === state.image));
      if (i === state.image) at("strip").scrollTo({ left: thumb.offsetLeft - at("strip").clientWidth / 2, behavior: "auto" });
    }
    over.src = image.views[left] ?? "";
    under.src = image.views[right] ?? "";
    const asked = state.image;
    await Promise.allSettled([over.decode(), under.decode()]);
    if (asked !== state.image) return;
    // The larger of the two sets the size, so an input is scaled up to its result.
    const larger = over.naturalWidth > under.naturalWidth ? over : under;
    size = { width: larger.naturalWidth || 1, height: larger.naturalHeight || 1 };
    place();
  }

  function scores(image) {
    const head = document.createElement("tr");
    const rows = models.filter((model) => image.scores[model]).map((model) => {
      const row = document.createElement("tr"), name = document.createElement("th");
      name.textContent = model;
      row.append(name, ...metrics.map((metric) => {
        const cell = document.createElement("td"), value = image.scores[model][metric.name];
        const all = models.map((m) => image.scores[m]?.[metric.name]).filter((v) => typeof v === "number");
        cell.dataset.label = `${metric.name} ${metric.arrow}`;
        cell.textContent = typeof value === "number" ? value.toPrecision(5) : value ?? "–";
        if (all.length > 1 && value === (metric.lower ? Math.min(...all) : Math.max(...all))) cell.className = "best";
        return cell;
      }));
      return row;
    });
    head.append(...["this image", ...metrics.map((m) => `${m.name} ${m.arrow}`)].map((text) => {
      const cell = document.createElement("th");
      cell.textContent = text;
      return cell;
    }));
    const thead = document.createElement("thead"), body = document.createElement("tbody");
    thead.append(head);
    body.append(...rows);
    at("scores").replaceChildren(...(metrics.length ? [thead, body] : []));
  }

  function place() {
    const box = stage.getBoundingClientRect(), dense = window.devicePixelRatio || 1;
    const fit = Math.min(box.width / size.width, box.height / size.height);
    const scale = state.zoom ? state.zoom / dense : fit;
    const width = size.width * scale, height = size.height * scale;
    const clamp = (offset, room, length) => (length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, offset)));
    state.x = clamp(state.x, box.width, width);
    state.y = clamp(state.y, box.height, height);
    sheet.style.width = `${width}px`;
    sheet.style.height = `${height}px`;
    sheet.style.transform = `translate(${state.x}px, ${state.y}px)`;
    sheet.classList.toggle("pixels", scale * dense >= 2);
    // The boundary belongs to the stage, so it stays visible when the image is moved.
    const visible = Math.min(width, box.width), start = Math.max(0, state.x);
    const edge = start + state.split * visible - state.x;
    at("clip").style.clipPath = `inset(0 ${Math.max(0, width - edge)}px 0 0)`;
    at("edge").style.left = `${edge}px`;
    const share = Math.round(state.split * 100);
    stage.setAttribute("aria-valuenow", String(share));
    at("boundary").textContent = `${share} %`;
    at("zoom").textContent = state.zoom ? `${state.zoom}×` : `fit, ${(fit * dense).toPrecision(2)}×`;
    at("smaller").disabled = !state.zoom;
    at("larger").disabled = state.zoom >= 16;
  }

  function zoomTo(zoom) {
    const box = stage.getBoundingClientRect(), before = sheet.getBoundingClientRect();
    const cx = (box.left + box.width / 2 - before.left) / before.width, cy = (box.top + box.height / 2 - before.top) / before.height;
    state.zoom = zoom;
    const dense = window.devicePixelRatio || 1, scale = zoom / dense;
    if (zoom) { state.x = box.width / 2 - cx * size.width * scale; state.y = box.height / 2 - cy * size.height * scale; }
    place();
  }

  const step = (by) => { if (images.length) { state.image = (state.image + by + images.length) % images.length; show(); } };
  const choose = (side, name) => { if (name) { state[side] = name; show(); } };
  const swap = () => { const [l, r] = [at("left").value, at("right").value]; state.left = r; state.right = l; show(); };
  const larger = () => zoomTo(Math.min(16, state.zoom ? state.zoom * 2 : 1));
  const smaller = () => zoomTo(state.zoom > 1 ? state.zoom / 2 : 0);
  const slide = (share) => { state.split = Math.min(1, Math.max(0, share)); place(); };

  let drag = null;
  const splitAt = (event) => {
    const box = stage.getBoundingClientRect(), shown = sheet.getBoundingClientRect();
    const start = Math.max(box.left, shown.left), end = Math.min(box.right, shown.right);
    slide((event.clientX - start) / Math.max(1, end - start));
  };
  stage.addEventListener("pointerdown", (event) => {
    drag = event.ctrlKey || event.button === 1 ? { x: event.clientX - state.x, y: event.clientY - state.y } : "split";
    stage.setPointerCapture(event.pointerId);
    if (drag === "split") splitAt(event); else event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (drag === "split") splitAt(event);
    else if (drag) { state.x = event.clientX - drag.x; state.y = event.clientY - drag.y; place(); }
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { drag = null; });
  stage.addEventListener("wheel", (event) => {
    if (!state.zoom) return;
    event.preventDefault();
    state.x -= event.deltaX; state.y -= event.deltaY; place();
  }, { passive: false });

  document.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLSelectElement || event.ctrlKey || event.metaKey || event.altKey) return;
    const digit = /^Digit([1-9])$/.exec(event.code);
    const actions = { ArrowLeft: () => slide(state.split - 0.02), ArrowRight: () => slide(state.split + 0.02), n: () => step(1), p: () => step(-1), s: swap, "+": larger, "=": larger, "-": smaller, 0: () => zoomTo(0), Home: () => slide(0), End: () => slide(1) };
    if (digit) choose(event.shiftKey ? "right" : "left", views()[digit[1] - 1]);
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  });
  at("previous").onclick = () => step(-1);
  at("next").onclick = () => step(1);
  at("swap").onclick = swap;
  at("larger").onclick = larger;
  at("smaller").onclick = smaller;
  at("left").onchange = (event) => choose("left", event.target.value);
  at("right").onchange = (event) => choose("right", event.target.value);
  at("image").onchange = (event) => { state.image = Number(event.target.value); show(); };
  window.addEventListener("resize", place);

  at("image").replaceChildren(...images.map((image, i) => new Option(`${i + 1}/${images.length} ${image.name}`, String(i))));
  // Thumbnails load their image when they become visible.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      const thumbnail = entry.target.querySelector("img");
      thumbnail.src = thumbnail.dataset.src;
      watcher.unobserve(entry.target);
    }
  }, { root: at("strip"), rootMargin: "0px 300px" });
  at("strip").replaceChildren(...images.map((image, i) => {
    const button = document.createElement("button"), thumbnail = document.createElement("img");
    button.type = "button";
    button.setAttribute("role", "option");
    button.title = image.name;
    thumbnail.alt = image.name;
    thumbnail.decoding = "async";
    thumbnail.dataset.src = Object.values(image.views)[0] ?? "";
    button.onclick = () => { state.image = i; show(); };
    button.append(thumbnail);
    watcher.observe(button);
    return button;
  }));
  if (images.length) {
    const names = views();
    state.left = names[0];
    // Begin with the input and its first result.
    state.right = models.find((model) => names.includes(model)) ?? names[names.length - 1];
  }
  show();
})();

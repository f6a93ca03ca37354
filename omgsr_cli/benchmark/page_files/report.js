"use strict";
(() => {
  const { images, metrics, models } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const state = { image: 0, left: "", right: "" };
  const viewer = createViewer(at("stage"), {
    onChange({ share, zoom, fit }) {
      at("boundary").textContent = `${share} %`;
      at("zoom").textContent = zoomText({ zoom, fit });
      at("smaller").disabled = !zoom;
      at("larger").disabled = zoom >= 16;
    },
  });

  const views = () => Object.keys(images[state.image]?.views ?? {});

  function fill(select, names, chosen) {
    select.replaceChildren(...names.map((name, i) => new Option(i < 9 ? `${i + 1} ${name}` : name, name)));
    select.value = chosen;
  }

  // If this image lacks the chosen view, show another one; the choice is kept for the next image.
  const present = (choice, fallback) => (views().includes(choice) ? choice : fallback);

  function show() {
    if (!images.length) { at("message").textContent = "This report has no images."; return; }
    const names = views(), image = images[state.image];
    const left = present(state.left, names[0]), right = present(state.right, names[names.length - 1]);
    fill(at("left"), names, left);
    fill(at("right"), names, right);
    at("image").value = String(state.image);
    at("message").textContent = Object.entries(image.errors).map(([m, e]) => `${m}: ${e}`).join(" · ");
    scores(image);
    for (const [i, thumb] of [...at("strip").children].entries()) {
      thumb.setAttribute("aria-selected", String(i === state.image));
      if (i === state.image) at("strip").scrollTo({ left: thumb.offsetLeft - at("strip").clientWidth / 2, behavior: "auto" });
    }
    viewer.show([left, right].map((name) => ({ name, src: image.views[name] })));
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

  const step = (by) => { if (images.length) { state.image = (state.image + by + images.length) % images.length; show(); } };
  const choose = (side, name) => { if (name) { state[side] = name; show(); } };
  const swap = () => { const [l, r] = [at("left").value, at("right").value]; state.left = r; state.right = l; show(); };

  const keys = { ...viewer.keys, n: () => step(1), p: () => step(-1), s: swap };
  for (let i = 0; i < 9; i++) for (const [shift, side] of [["", "left"], ["Shift+", "right"]]) keys[`${shift}Digit${i + 1}`] = () => choose(side, views()[i]);
  document.addEventListener("keydown", (event) => {
    const action = actionOf(event, keys);
    if (!action) return;
    action();
    event.preventDefault();
  });
  at("previous").onclick = () => step(-1);
  at("next").onclick = () => step(1);
  at("swap").onclick = swap;
  at("larger").onclick = () => viewer.larger();
  at("smaller").onclick = () => viewer.smaller();
  at("left").onchange = (event) => choose("left", event.target.value);
  at("right").onchange = (event) => choose("right", event.target.value);
  at("image").onchange = (event) => { state.image = Number(event.target.value); show(); };

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

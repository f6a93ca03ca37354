"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const { panes, command, model } = read("run"), at = (id) => document.getElementById(id);
  // An interrupted run can report an image twice; its last entry counts. Entries without a name are inputs without a file.
  const inOrder = new Intl.Collator(undefined, { numeric: true }), byName = new Map();
  for (const [i, entry] of read("data").entries()) if (entry) byName.set(entry.name || `#${i}`, { ...entry, title: entry.title || entry.error || "?" });
  // Several input folders can contain the same name.
  const titles = new Map();
  for (const { title } of byName.values()) titles.set(title, (titles.get(title) ?? 0) + 1);
  for (const entry of byName.values()) if (titles.get(entry.title) > 1) entry.title = entry.name || entry.title;
  const images = [...byName.values()].sort((a, b) => inOrder.compare(a.title, b.title));

  /* Marks and the current image survive a reload, if the browser stores something for files. */
  const key = `omgsr ${location.pathname}`;
  let marks = new Map(), current = images[0], stores = true;
  try {
    const kept = JSON.parse(localStorage.getItem(key) ?? "{}");
    marks = new Map(Object.entries(kept.marks ?? {}));
    current = byName.get(kept.current) ?? current;
  } catch { stores = false; }
  function store() {
    try { localStorage.setItem(key, JSON.stringify({ marks: Object.fromEntries(marks), current: current?.name })); }
    catch { stores = false; }
  }
  const markOf = (image) => marks.get(image.name);

  const filters = {
    all: () => true, redo: (image) => markOf(image) === "redo", keep: (image) => markOf(image) === "keep",
    unmarked: (image) => !markOf(image), failed: (image) => image.status === "failed", notes: (image) => image.notes.length > 0,
  };
  const names = { all: "all", redo: "to redo", keep: "to keep", unmarked: "unmarked", failed: "failed", notes: "with notes" };
  let visible = images;

  const isWanted = (image) => (filters[at("filter").value] ?? filters.all)(image) && image.title.toLowerCase().includes(at("search").value.toLowerCase());
  function filter() {
    visible = images.filter(isWanted);
    if (!visible.includes(current)) current = visible[0];
    count();
    show();
  }
  function count() {
    const chosen = at("filter").value || "all";
    const counts = Object.fromEntries(Object.entries(filters).map(([name, test]) => [name, images.filter(test).length]));
    at("filter").replaceChildren(...Object.keys(filters).map((name) => new Option(`${names[name]} (${counts[name]})`, name)));
    at("filter").value = chosen;
    at("counts").textContent = `${visible.length === images.length ? "" : `${visible.length} of `}${images.length} images` +
      (counts.failed ? `, ${counts.failed} failed` : "") + ` · ${model}`;
  }

  /* The thumbnails: only those in sight are in the document. */
  const list = at("list"), rows = at("rows"), GAP = 6, CAPTION = 17, cells = new Map();
  let grid = { columns: 1, side: 96 };
  function measure() {
    const width = list.clientWidth - GAP;
    const columns = Math.max(1, Math.floor(width / (96 + GAP)));
    grid = { columns, side: Math.floor(width / columns) - GAP };
    rows.style.height = `${Math.ceil(visible.length / columns) * (grid.side + CAPTION + GAP)}px`;
  }
  function thumbnails(again = false) {
    if (again) { rows.replaceChildren(); cells.clear(); measure(); }
    const high = grid.side + CAPTION + GAP, first = Math.max(0, Math.floor(list.scrollTop / high) - 2) * grid.columns;
    const end = Math.min(visible.length, Math.ceil((list.scrollTop + list.clientHeight) / high + 2) * grid.columns);
    for (const [i, cell] of cells) if (i < first || i >= end) { cell.remove(); cells.delete(i); }
    for (let i = first; i < end; i++) {
      if (!cells.has(i)) { cells.set(i, thumbnail(visible[i], i)); rows.append(cells.get(i)); }
      const cell = cells.get(i), mark = markOf(visible[i]) ?? (visible[i].status === "failed" ? "failed" : "");
      cell.setAttribute("aria-selected", String(visible[i] === current));
      cell.setAttribute("aria-label", [visible[i].title, mark].filter(Boolean).join(", "));
      if (mark) cell.dataset.mark = mark; else delete cell.dataset.mark;
      if (visible[i] === current) list.setAttribute("aria-activedescendant", cell.id);
    }
  }
  function thumbnail(image, i) {
    const cell = document.createElement("button"), picture = document.createElement("span"), label = document.createElement("span");
    const high = grid.side + CAPTION;
    Object.assign(cell, { type: "button", id: `t${i}`, tabIndex: -1, title: image.title, onclick: () => choose(image) });
    cell.style.cssText = `left:${(i % grid.columns) * (grid.side + GAP)}px;top:${Math.floor(i / grid.columns) * (high + GAP)}px;width:${grid.side}px;height:${high}px`;
    for (const [name, value] of [["role", "option"], ["aria-posinset", i + 1], ["aria-setsize", visible.length]]) cell.setAttribute(name, value);
    picture.className = "picture";
    const lack = () => { picture.textContent = "–"; };
    if (image.thumb) picture.append(Object.assign(document.createElement("img"), { alt: image.title, src: image.thumb, decoding: "async", draggable: false, onerror: lack }));
    else lack();
    label.className = "label";
    label.textContent = image.title.split("/").pop();
    cell.append(picture, label);
    return cell;
  }
  function reveal() {
    const high = grid.side + CAPTION + GAP, top = Math.floor(visible.indexOf(current) / grid.columns) * high;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + high > list.scrollTop + list.clientHeight) list.scrollTop = top + high - list.clientHeight;
  }

  /* The image. */
  const chosen = { left: 0, right: 1, beside: false };
  const viewer = createViewer(at("stage"), {
    drags: "image",
    onChange({ zoom, fit, slides }) {
      at("zoom").textContent = zoomText({ zoom, fit });
      at("smaller").disabled = !zoom;
      at("larger").disabled = zoom >= 16;
      at("flip").disabled = !slides;
    },
  });
  const lack = (image, i) => image.status === "failed" && i < 2 ? image.error ?? "failed" : i > 1 ? `${panes[i]}: no result of this image` : "cannot be shown here";
  const pane = (image, i) => ({ name: panes[i], src: image.views[i] ?? "", lack: lack(image, i) });
  const area = (size) => size && `${size[0]}×${size[1]}`;

  function show() {
    thumbnails(true);
    if (current) reveal();
    thumbnails();
    store();
    at("name").textContent = current?.title ?? "No image";
    at("name").title = current?.title ?? "";
    for (const name of ["keep", "redo"]) {
      at(name).disabled = !current?.name;
      at(name).setAttribute("aria-pressed", String(Boolean(current) && markOf(current) === name));
    }
    facts();
    if (!current) { at("stage").replaceChildren(); return; }
    const size = current.to ?? current.from, all = panes.map((_, i) => pane(current, i));
    const views = !current.views.some(Boolean) ? [{ name: "", lack: current.error ?? "cannot be shown here" }] : chosen.beside ? all : [all[chosen.left], all[chosen.right]];
    viewer.show(views, { beside: chosen.beside, size: size ? { width: size[0], height: size[1] } : undefined });
    const following = visible[visible.indexOf(current) + 1];
    if (following) for (const i of [chosen.left, chosen.right]) if (following.views[i]) new Image().src = following.views[i];
  }
  function facts() {
    const status = { done: `in ${current?.seconds} s`, skipped: "finished before", failed: "" }[current?.status];
    const sizes = [area(current?.from), area(current?.to)].filter(Boolean).join(" → ");
    at("facts").textContent = [sizes, status, current?.made, ...(current?.notes ?? []), stores ? "" : "marks are lost when this page closes: the browser stores nothing for it"].filter(Boolean).join(" · ");
    if (current?.error) at("facts").prepend(Object.assign(document.createElement("b"), { textContent: `${current.error} ` }));
  }

  const choose = (image) => { current = image; show(); };
  const step = (by) => { if (visible.length) choose(visible[Math.min(visible.length - 1, Math.max(0, visible.indexOf(current) + by))]); };
  function mark(name) {
    if (!current?.name) return;
    const place = visible.indexOf(current);
    if (markOf(current) === name) marks.delete(current.name); else marks.set(current.name, name);
    if (isWanted(current)) { count(); show(); return; }
    // It leaves the images that are shown, so the next one takes its place.
    current = visible[place + 1] ?? visible[place - 1];
    filter();
  }
  const flip = () => viewer.slide(viewer.state.split > 0.5 ? 0 : 1);
  function side() {
    chosen.beside = !chosen.beside;
    at("beside").setAttribute("aria-pressed", String(chosen.beside));
    at("choices").hidden = chosen.beside || panes.length < 3;
    show();
  }
  function pick(which, i) {
    if (i >= panes.length) return;
    chosen[which] = i;
    at(which).value = String(i);
    show();
  }
  const swap = () => { const { left, right } = chosen; pick("left", right); pick("right", left); };
  const zoom = (event) => viewer.zoomTo(viewer.state.zoom ? 0 : 1, event);
  const widen = () => { document.body.classList.toggle("wide"); show(); viewer.place(); };

  /* Lists for the next command. */
  function openLists() {
    at("which").value = filters[at("filter").value] && at("filter").value !== "all" ? at("filter").value : "redo";
    fillLists();
    at("listDialog").showModal();
  }
  function fillLists() {
    const which = at("which").value, file = `${which === "all" ? "list" : which}.txt`;
    at("lines").value = images.filter((image) => image.name && filters[which](image)).map((image) => `${image.name}\n`).join("");
    at("file").textContent = file;
    at("command").value = `${command} --list ${file} --overwrite --strength 0.7`;
    at("copied").textContent = at("lines").value ? "" : "No image has this mark.";
  }
  async function copy() {
    try { await navigator.clipboard.writeText(at("lines").value); }
    catch {
      at("lines").select();
      if (!document.execCommand("copy")) { at("copied").textContent = "Press Ctrl-C to copy the selected text."; return; }
    }
    at("copied").textContent = "Copied.";
  }
  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([at("lines").value], { type: "text/plain" }));
    link.download = at("file").textContent;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  const keys = {
    ...viewer.keys, n: () => step(1), p: () => step(-1), PageDown: () => step(1), PageUp: () => step(-1), " ": flip, z: () => zoom(), m: side,
    s: swap, k: () => mark("keep"), r: () => mark("redo"), l: openLists, f: widen, "?": () => at("helpDialog").showModal(),
  };
  for (let i = 0; i < 9; i++) for (const [shift, which] of [["", "left"], ["Shift+", "right"]]) keys[`${shift}Digit${i + 1}`] = () => pick(which, i);
  const listKeys = {
    ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowDown: () => step(grid.columns), ArrowUp: () => step(-grid.columns),
    Home: () => step(-images.length), End: () => step(images.length), Enter: () => at("stage").focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest?.("dialog") || (event.key === " " && event.target.closest?.("button"))) return;
    const action = (event.target.closest?.("#list") && !event.shiftKey && listKeys[event.key]) || actionOf(event, keys);
    if (!action) return;
    action();
    event.preventDefault();
  });
  for (const [id, action] of Object.entries({ previous: () => step(-1), next: () => step(1), flip, beside: side, zoom: () => zoom(), larger: () => viewer.larger(), smaller: () => viewer.smaller(), keep: () => mark("keep"), redo: () => mark("redo"), lists: openLists, help: () => at("helpDialog").showModal(), copy, save })) at(id).onclick = action;
  for (const which of ["left", "right"]) {
    at(which).replaceChildren(...panes.map((name, i) => new Option(`${i + 1} ${name}`, String(i))));
    at(which).value = String(chosen[which]);
    at(which).onchange = (event) => pick(which, Number(event.target.value));
  }
  at("choices").hidden = panes.length < 3;
  at("which").replaceChildren(...Object.keys(filters).map((name) => new Option(names[name], name)));
  at("which").onchange = fillLists;
  at("filter").onchange = filter;
  at("search").oninput = filter;
  at("stage").ondblclick = zoom;
  list.addEventListener("scroll", () => thumbnails(), { passive: true });
  window.addEventListener("resize", () => { thumbnails(true); if (current) reveal(); thumbnails(); });
  store();
  filter();
})();

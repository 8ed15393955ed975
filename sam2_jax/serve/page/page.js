// The page of `sam2-jax serve`: it draws what the server says and keeps nothing that the server has not.
"use strict";

const $ = (id) => document.getElementById(id);
const stage = $("stage"), picture = $("picture"), marks = $("marks");

let limits = { upload_mb: 0, objects: 255 };
let session = null;          // what the server describes
let masks = new Map();       // frame -> objects with masks
let images = new Map();      // frame -> Promise of a picture
let frame = 0, chosen = 1, isTracking = false, isBusy = 0, playing = null;
let queue = Promise.resolve();
let cursor = null;           // the keyboard's cross, pixels of the video
let corner = null, corner2 = null;  // of the box being drawn
const MAX_IMAGES = 60;

// ---- the server -------------------------------------------------------------------------------

async function ask(method, path, body, isFile = false) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body && !isFile ? { "Content-Type": "application/json" } : {},
      body: body && !isFile ? JSON.stringify(body) : body,
    });
  } catch {
    throw new Error("The server does not answer. Start it again if it was stopped, then open the video again.");
  }
  if (!answer.ok) {
    let detail = `${answer.status} ${answer.statusText}`;
    try { detail = (await answer.json()).detail || detail; } catch { /* not JSON */ }
    const error = new Error(detail);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

const at = (path) => `api/sessions/${session.id}${path}`;

// Runs one thing after the other and shows what went wrong.
function attempt(text, work) {
  isBusy += 1;
  queue = queue.then(async () => {
    say(text);
    update();
    try {
      say((await work()) || "");
    } catch (error) {
      say(error.message, true);
    } finally {
      isBusy -= 1;
      update();
    }
  });
  return queue;
}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("is-error", isError);
}

// ---- opening ----------------------------------------------------------------------------------

async function show(info) {
  session = info;
  images = new Map();
  frame = 0;
  chosen = info.objects.length ? info.objects[0].object : 1;
  cursor = corner = corner2 = null;
  $("frame").max = info.num_frames - 1;
  $("video-name").textContent = `${info.name}, ${info.width}×${info.height}, ${info.num_frames} frames`;
  history.replaceState(null, "", `#${info.id}`);  // a reload finds it again
  await reread();
  fit();
  await draw();
}

function open(request, text) {
  return attempt(text, async () => {
    const info = await (await request()).json();
    if (session) fetch(at(""), { method: "DELETE" }).catch(() => {});
    await show(info);
    return info.notice || "Click on something to segment it.";
  });
}

function openFile(file) {
  if (!file) return;
  if (limits.upload_mb && file.size > limits.upload_mb * 2 ** 20) {
    say(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MiB; at most ${limits.upload_mb} MiB are taken: cut it, or write it smaller.`, true);
    return;
  }
  const name = encodeURIComponent(file.name);
  open(() => ask("POST", `api/sessions?name=${name}`, file, true), `Reading ${file.name} …`);
}

const openSample = () => open(() => ask("POST", "api/sessions/sample"), "Opening the sample clip …");

// ---- masks ------------------------------------------------------------------------------------

// COCO's text: 5 bits a character, lowest first, each run less the one two before; column by column.
function decode(rle) {
  const [height, width] = rle.size, runs = [];
  for (let i = 0; i < rle.counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = rle.counts.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  const mask = new Uint8Array(height * width);
  let place = 0;
  runs.forEach((run, i) => {
    if (i % 2) {
      for (let p = place; p < place + run; p++) mask[(p % height) * width + Math.floor(p / height)] = 1;
    }
    place += run;
  });
  return mask;
}

const rgb = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
const colorOf = (id) => (session.objects.find((o) => o.object === id) || { color: "#888888" }).color;

function paintMasks(context, objects) {
  const { width, height } = session;
  const image = context.getImageData(0, 0, width, height), pixels = image.data;
  for (const one of objects) {
    const color = rgb(colorOf(one.object)), mask = decode(one.mask);
    for (let p = 0; p < mask.length; p++) {
      if (!mask[p]) continue;
      const x = p % width;
      const isEdge = (x > 0 && !mask[p - 1]) || (x < width - 1 && !mask[p + 1]) ||
        (p >= width && !mask[p - width]) || (p + width < mask.length && !mask[p + width]);
      for (let c = 0; c < 3; c++) {
        const i = 4 * p + c;
        pixels[i] = isEdge ? (color[c] + 510) / 3 : 0.5 * pixels[i] + 0.5 * color[c];
      }
    }
  }
  context.putImageData(image, 0, 0);
}

// ---- drawing ----------------------------------------------------------------------------------

function load(t) {
  if (!images.has(t)) {
    images.set(t, new Promise((done, failed) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => { images.delete(t); failed(new Error("The frame cannot be loaded: the session may have expired. Open the video again.")); };
      image.src = at(`/frames/${t}.jpg`);
    }));
    if (images.size > MAX_IMAGES) images.delete(images.keys().next().value);
  }
  return images.get(t);
}

async function draw() {
  if (!session) return;
  const t = frame, mine = session;
  let image;
  try {
    image = await load(t);
  } catch (error) {
    say(error.message, true);
    return;
  }
  if (t !== frame || mine !== session) return;
  const context = picture.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const objects = masks.get(t);
  if (objects && objects.length) paintMasks(context, objects);
  picture.dataset.frame = t;
  picture.dataset.objects = (objects || []).map((o) => o.object).join(",");
  drawMarks();
  for (const ahead of [t + 1, t + 2]) if (ahead < session.num_frames) load(ahead).catch(() => {});
}

function fit() {
  if (!session) return;
  const scale = Math.min(stage.clientWidth / session.width, stage.clientHeight / session.height);
  const width = session.width * scale, height = session.height * scale;
  for (const canvas of [picture, marks]) {
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.style.left = `${(stage.clientWidth - width) / 2}px`;
    canvas.style.top = `${(stage.clientHeight - height) / 2}px`;
  }
  if (picture.width !== session.width || picture.height !== session.height) {
    picture.width = session.width;
    picture.height = session.height;
  }
  marks.width = width * devicePixelRatio;
  marks.height = height * devicePixelRatio;
  drawMarks();
  drawTimeline();
}

function drawMarks() {
  const context = marks.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, marks.width, marks.height);
  if (!session) return;
  const scale = marks.width / session.width, unit = devicePixelRatio;
  const box = (x0, y0, x1, y1, color) => {
    context.lineWidth = 2 * unit;
    context.strokeStyle = color;
    context.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
  };
  for (const one of session.prompts) {
    if (one.frame !== frame) continue;
    if (one.box) box(...one.box, colorOf(one.object));
    one.points.forEach(([x, y], i) => {
      const isObject = one.labels[i] === 1, r = 7 * unit;
      context.beginPath();
      context.arc(x * scale, y * scale, r, 0, 2 * Math.PI);
      context.fillStyle = isObject ? "#00b45a" : "#e12832";
      context.fill();
      context.lineWidth = 2 * unit;
      context.strokeStyle = one.object === chosen ? "#ffffff" : colorOf(one.object);
      context.stroke();
      context.beginPath();
      context.moveTo(x * scale - r / 2, y * scale);
      context.lineTo(x * scale + r / 2, y * scale);
      if (isObject) {
        context.moveTo(x * scale, y * scale - r / 2);
        context.lineTo(x * scale, y * scale + r / 2);
      }
      context.strokeStyle = "#ffffff";
      context.stroke();
    });
  }
  const other = corner2 || cursor;
  if (corner && other) box(corner[0], corner[1], other[0], other[1], "#00e678");
  if (cursor) {
    const [x, y] = cursor.map((c) => c * scale), arm = 14 * unit;
    for (const [style, width] of [["#000000", 4], ["#ffffff", 2]]) {
      context.lineWidth = width * unit;
      context.strokeStyle = style;
      context.beginPath();
      context.moveTo(x - arm, y);
      context.lineTo(x + arm, y);
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
      context.stroke();
    }
  }
}

function drawTimeline() {
  const canvas = $("timeline"), context = canvas.getContext("2d");
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  if (!session) return;
  const step = canvas.width / session.num_frames;
  context.fillStyle = "#4285f4";
  for (const t of masks.keys()) context.fillRect(t * step, canvas.height / 3, Math.ceil(step), canvas.height / 3);
  for (const one of session.prompts) {
    context.fillStyle = colorOf(one.object);
    context.fillRect(one.frame * step, 0, Math.max(step, 3 * devicePixelRatio), canvas.height);
  }
}

const HINTS = {
  click: "Click on the object. More clicks add to it.",
  erase: "Click on what does not belong to the object.",
  box: "Draw a box around the object.",
};
const tool = () => document.querySelector("input[name=tool]:checked").value;

function update() {
  const isIdle = !!session && !isBusy && !isTracking;
  const hasMasks = masks.size > 0;
  const exists = session && session.objects.some((o) => o.object === chosen);
  $("empty").hidden = !!session;
  $("hint").textContent = session ? HINTS[tool()] : "";
  stage.classList.toggle("is-boxing", tool() === "box");
  $("frame").value = frame;
  $("frame").disabled = !session || session.num_frames === 1;
  $("frame-number").textContent = session ? `${frame + 1} / ${session.num_frames}` : "0 / 0";
  for (const id of ["play", "previous", "next"]) $(id).disabled = !session || session.num_frames === 1;
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  $("undo").disabled = !(isIdle && session.can_undo);
  $("clear").disabled = !(isIdle && session.prompts.some((p) => p.frame === frame && p.object === chosen));
  $("new-object").disabled = !session || session.objects.length >= limits.objects;
  const canTrack = isIdle && session.num_frames > 1 && session.prompts.length > 0;
  $("track").disabled = $("track-on").disabled = !canTrack;
  $("cancel").hidden = $("progress").hidden = !isTracking;
  $("sample").disabled = isBusy && !isTracking;
  document.querySelectorAll("[data-download]").forEach((b) => { b.disabled = !(isIdle && hasMasks); });
  listObjects(exists);
  drawTimeline();
  document.body.dataset.state = isTracking ? "tracking" : isBusy ? "busy" : "idle";
}

function listObjects(exists) {
  const list = $("objects");
  if (list.contains(document.activeElement) && document.activeElement.tagName === "INPUT") return;
  const focused = document.activeElement && document.activeElement.dataset.key;
  list.replaceChildren();
  if (!session) return;
  const shown = [...session.objects];
  if (!exists) shown.push({ object: chosen, name: `Object ${chosen}`, color: "#888888", isNew: true });
  const here = new Map((masks.get(frame) || []).map((o) => [o.object, o]));
  for (const one of shown) {
    const item = document.createElement("li");
    item.classList.toggle("is-chosen", one.object === chosen);
    const swatch = document.createElement("button");
    swatch.className = "swatch";
    swatch.style.background = one.color;
    swatch.dataset.key = `choose-${one.object}`;
    swatch.setAttribute("aria-label", `Choose ${one.name}`);
    swatch.setAttribute("aria-pressed", one.object === chosen);
    swatch.onclick = () => choose(one.object);
    item.append(swatch);
    const name = document.createElement("input");
    name.value = one.name;
    name.disabled = !!one.isNew;
    name.maxLength = 100;
    name.setAttribute("aria-label", `Name of object ${one.object}`);
    name.onfocus = () => { if (chosen !== one.object) { chosen = one.object; drawMarks(); } };
    name.onkeydown = (event) => { if (event.key === "Enter" || event.key === "Escape") name.blur(); };
    name.onchange = () => rename(one.object, name.value.trim());
    name.onblur = () => setTimeout(update);
    item.append(name);
    const found = here.get(one.object), score = document.createElement("small");
    if (found) {
      score.textContent = found.score > 0 ? `${Math.round(100 * found.iou)} %` : "hidden";
      score.title = found.score > 0 ? "how good the model takes the mask to be" : "the model does not see the object here";
    }
    item.append(score);
    if (!one.isNew) {
      const remove = document.createElement("button");
      remove.className = "remove";
      remove.textContent = "✕";
      remove.dataset.key = `remove-${one.object}`;
      remove.setAttribute("aria-label", `Remove ${one.name}`);
      remove.onclick = () => removeObject(one.object);
      item.append(remove);
    }
    list.append(item);
  }
  if (focused) list.querySelector(`[data-key="${focused}"]`)?.focus();
}

// ---- what people do ---------------------------------------------------------------------------

function go(t) {
  if (!session) return;
  frame = Math.max(0, Math.min(session.num_frames - 1, t));
  corner = corner2 = null;
  update();
  return draw();
}

function choose(id) {
  chosen = id;
  corner = corner2 = null;
  update();
  drawMarks();
}

function newObject() {
  if ($("new-object").disabled) return;
  const used = new Set(session.objects.map((o) => o.object));
  if (isBusy) used.add(chosen);  // a click on it is under way
  let id = 1;
  while (used.has(id)) id++;
  choose(id);
}

function nextObject(step) {
  if (!session || !session.objects.length) return;
  const ids = session.objects.map((o) => o.object), i = ids.indexOf(chosen);
  choose(ids[(i + step + ids.length) % ids.length]);
}

async function refresh() {
  session = await (await ask("GET", at(""))).json();
}

function keep(result) {
  if (result.objects.length) masks.set(result.frame, result.objects);
  else masks.delete(result.frame);
}

// After undo and removal: which masks there are, and those of this frame; the others when they are looked at.
async function reread() {
  masks = new Map();
  if (!session.frames_with_masks.length) return;
  const document = await (await ask("GET", at("/masks.json"))).json();
  for (const [t, objects] of Object.entries(document.frames)) {
    masks.set(Number(t), Object.entries(objects).map(([id, mask]) => (
      { object: Number(id), mask, ...document.scores[t][id] })));
  }
}

async function prompt(body) {
  if (!session) return;
  const asked = { frame, object: chosen, ...body };
  if (isTracking) await cancel();
  await attempt("…", async () => {
    keep(await (await ask("POST", at("/prompts"), asked)).json());
    await refresh();
    await draw();
  });
}

const point = (place, isErase) => prompt({ points: [place], labels: [isErase ? 0 : 1], add: true });

function box(a, b) {
  const [x0, x1] = [a[0], b[0]].sort((p, q) => p - q), [y0, y1] = [a[1], b[1]].sort((p, q) => p - q);
  if (x1 - x0 < 2 || y1 - y0 < 2) {
    say("The box is too small: draw it from one corner of the object to the other.", true);
    return;
  }
  return prompt({ box: [x0, y0, x1, y1] });
}

async function change(method, path, body) {
  if (!session || isTracking) return;
  await attempt("…", async () => {
    const answer = await (await ask(method, at(path), body)).json();
    if (answer.id) session = answer;
    else { keep(answer); await refresh(); }
    await reread();
    await draw();
  });
}

// What a key or a button asks for while something else is under way comes after it; nothing waits for tracking.
const later = (button, act) => async () => {
  if (isTracking) return;
  await queue;
  if (!$(button).disabled) await act();
};
const undo = later("undo", () => change("POST", "/undo"));
const clear = later("clear", () => change("DELETE", `/prompts?frame=${frame}&object=${chosen}`));
const trackAll = later("track", () => track({}));
const trackOn = later("track-on", () => track({ start: frame, direction: "forward" }));
const rename = (id, name) => name && change("PATCH", `/objects/${id}`, { name });

async function removeObject(id) {
  if (!session || !session.objects.some((o) => o.object === id)) return;
  await change("DELETE", `/objects/${id}`);
  if (session.objects.length) choose(session.objects[0].object);
}

async function track(body) {
  pause();
  isTracking = true;
  const total = body.direction === "forward" ? session.num_frames - body.start : session.num_frames;
  $("progress").max = total;
  $("progress").value = 0;
  await attempt("Tracking …", async () => {
    const started = performance.now();
    let count = 0, last = null;
    try {
      const answer = await ask("POST", at("/track"), body);
      for await (const result of lines(answer.body)) {
        if (result.objects === undefined) { last = result; continue; }
        keep(result);
        $("progress").value = ++count;
        const rate = 1000 * count / (performance.now() - started);
        say(`Tracking: ${count} of ${total} frames, ${rate.toFixed(1)} a second`);
        frame = result.frame;
        update();
        draw();
      }
    } finally {
      isTracking = false;
    }
    await refresh();
    if (!last) throw new Error("The connection broke off; the frames so far are there. Track again to go on.");
    if (last.error) throw new Error(last.error);
    return last.cancelled ? `Cancelled after ${count} frames.` : `${count} frames tracked. Correct a frame and track again where it is wrong.`;
  });
  isTracking = false;
  update();
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try { part = await reader.read(); } catch { return; }
    if (part.done) return;
    const pieces = (rest + part.value).split("\n");
    rest = pieces.pop();
    for (const piece of pieces) yield JSON.parse(piece);
  }
}

async function cancel() {
  if (corner) { corner = corner2 = null; drawMarks(); return; }
  if (!isTracking) return;
  await ask("POST", at("/cancel")).catch((error) => say(error.message, true));
  while (isTracking || isBusy) await new Promise((done) => setTimeout(done, 30));
}

function play() {
  if (playing) { pause(); return; }
  if (!session || session.num_frames === 1) return;
  if (frame === session.num_frames - 1) frame = -1;
  const step = async () => {
    const started = performance.now();
    await go(frame + 1);
    if (!playing) return;
    if (frame === session.num_frames - 1) { pause(); return; }
    playing = setTimeout(step, Math.max(0, 1000 / session.fps - (performance.now() - started)));
  };
  playing = setTimeout(step);
  update();
}

function pause() {
  clearTimeout(playing);
  playing = null;
  update();
}

function download(kind) {
  attempt(`Writing ${kind} …`, async () => {
    const answer = await ask("GET", at(`/${kind}`));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    const given = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("Content-Disposition") || "");
    link.download = given ? decodeURIComponent(given[1]) : kind;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return `${link.download} is downloaded.`;
  });
}

// ---- pointing ---------------------------------------------------------------------------------

function place(event) {
  const area = marks.getBoundingClientRect();
  const clip = (value, most) => Math.max(0, Math.min(most - 0.5, value));
  return [
    clip((event.clientX - area.left) / area.width * session.width, session.width),
    clip((event.clientY - area.top) / area.height * session.height, session.height),
  ];
}

marks.addEventListener("pointerdown", (event) => {
  if (!session) return;
  cursor = null;
  if (tool() === "box" && event.button === 0) {
    corner = place(event);
    corner2 = corner;
    marks.setPointerCapture(event.pointerId);
  }
});
marks.addEventListener("pointermove", (event) => {
  if (!corner || !corner2) return;
  corner2 = place(event);
  drawMarks();
});
marks.addEventListener("pointercancel", () => { corner = corner2 = null; drawMarks(); });
marks.addEventListener("pointerup", (event) => {
  if (!session || !corner || !corner2) return;
  const [from, to] = [corner, place(event)];
  corner = corner2 = null;
  drawMarks();
  box(from, to);
});
marks.addEventListener("click", (event) => {
  if (session && tool() !== "box") point(place(event), tool() === "erase" || event.altKey);
});
marks.addEventListener("contextmenu", (event) => {
  if (!session) return;
  event.preventDefault();
  point(place(event), true);
});

stage.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (!session || event.ctrlKey || event.metaKey) return;
  if (moves[event.key]) {
    const step = Math.max(session.width, session.height) / (event.shiftKey ? 10 : 100);
    const [x, y] = cursor || [session.width / 2, session.height / 2], [dx, dy] = moves[event.key];
    cursor = [
      Math.max(0, Math.min(session.width - 1, x + dx * step)),
      Math.max(0, Math.min(session.height - 1, y + dy * step)),
    ];
    drawMarks();
  } else if (event.key === "Enter" && cursor) {
    if (tool() !== "box") point(cursor, tool() === "erase" || event.altKey);
    else if (!corner) { corner = cursor; drawMarks(); }
    else { const from = corner; corner = null; box(from, cursor); }
  } else return;
  event.preventDefault();
  event.stopPropagation();
});
stage.addEventListener("focus", () => {
  if (session && !cursor && stage.matches(":focus-visible")) {
    cursor = [session.width / 2, session.height / 2];
    drawMarks();
  }
});
stage.addEventListener("blur", () => { cursor = null; drawMarks(); });

const pick = (value) => {
  document.querySelector(`input[name=tool][value=${value}]`).checked = true;
  corner = corner2 = null;
  update();
};
const KEYS = {
  1: () => pick("click"), 2: () => pick("erase"), 3: () => pick("box"),
  n: newObject, "[": () => nextObject(-1), "]": () => nextObject(1),
  ",": () => go(frame - 1), ".": () => go(frame + 1),
  ArrowLeft: () => go(frame - 1), ArrowRight: () => go(frame + 1),
  Home: () => go(0), End: () => go(Infinity),
  " ": play, t: trackAll, T: trackOn,
  Escape: cancel, z: undo, c: clear, Delete: () => removeObject(chosen),
  o: () => $("file").click(), "?": () => $("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  const target = event.target;
  const isTyping = target.matches("input:not([type=range]):not([type=radio])");
  if (isTyping || $("help").open || event.altKey) return;
  if ((event.ctrlKey || event.metaKey) && event.key !== "z") return;
  // Radio buttons and sliders have arrows of their own, buttons a space.
  if (/^(Arrow|Home|End)/.test(event.key) && target.matches("input")) return;
  if (event.key === " " && target.matches("button, input, summary")) return;
  const act = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});

$("frame").addEventListener("input", () => go(Number($("frame").value)));
$("file").addEventListener("change", () => { openFile($("file").files[0]); $("file").value = ""; });
$("sample").onclick = openSample;
$("play").onclick = play;
$("previous").onclick = () => go(frame - 1);
$("next").onclick = () => go(frame + 1);
$("new-object").onclick = newObject;
$("undo").onclick = undo;
$("clear").onclick = clear;
$("track").onclick = trackAll;
$("track-on").onclick = trackOn;
$("cancel").onclick = cancel;
$("help-button").onclick = () => $("help").showModal();
document.querySelectorAll("input[name=tool]").forEach((input) => input.addEventListener("change", update));
document.querySelectorAll("[data-download]").forEach((button) => {
  button.onclick = () => download(button.dataset.download);
});

document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("is-over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) stage.classList.remove("is-over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("is-over");
  openFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => openFile(event.clipboardData.files[0]));
new ResizeObserver(fit).observe(stage);

async function start() {
  const id = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);  // the token is in a cookie now
  limits = (await (await ask("GET", "api/info")).json()).limits;
  if (id) {
    try {
      await show(await (await ask("GET", `api/sessions/${encodeURIComponent(id)}`)).json());
      update();
      return;
    } catch (error) {
      await openSample();
      say(error.message, true);
      return;
    }
  }
  await openSample();
}
start().catch((error) => say(error.message, true));

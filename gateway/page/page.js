import { area, cut, mark, matched, painted, runs } from "./masks.js";

const $ = (id) => document.getElementById(id);
const LEAST = 0.05; // asked of the server; the slider chooses from what came
const WIDEST = 1600; // pixels of the canvas
const STEPS = ["admission", "preprocess", "network", "postprocess"];
const ONLY_LEFT = [217, 72, 15, 210], ONLY_RIGHT = [16, 84, 214, 210];

const state = {
  file: null, name: "photo.jpg", bitmap: null, served: [], left: "", right: "", answers: {}, hidden: new Set(),
  focus: -1, number: 0, times: null, scale: 1,
};

// Colors as the server's overlays have them.
function color(index) {
  const hue = (0.58 + index * 0.618033988749895) % 1, k = (n) => {
    const t = (n + hue * 6) % 6;
    return Math.round(255 * (1 - 0.8 * Math.max(0, Math.min(t, 4 - t, 1))));
  };
  return [k(5), k(3), k(1)];
}
const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
const value = (id) => Number($(id).value);
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function element(kind, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(kind), attributes);
  made.textContent = text;
  return made;
}

// --- the server -----------------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers["X-API-Key"] = $("key").value;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
  if (!answer.ok) {
    let text = answer.statusText;
    try {
      const problem = await answer.json();
      text = problem.detail || problem.error || text;
    } catch { /* no JSON: its status has to do */ }
    const error = new Error(answer.status === 503 || answer.status === 429 ? `${text} (the server is busy)` : text);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

async function models() {
  const found = await (await ask("/v1/models")).json();
  state.served = found.models;
  const names = found.models.map((one) => one.precision);
  if (!names.includes(state.left)) state.left = found.defaults.precision || "";
  $("precisions").replaceChildren(...names.map((name) => {
    const label = document.createElement("label");
    label.append(
      element("input", "", { type: "radio", name: "precision", value: name, checked: name === state.left }),
      element("span", name),
    );
    return label;
  }));
  if (!names.length) $("precisions").replaceChildren(element("span", "none is ready"));
  others();
  code();
}

function others() {
  const names = state.served.map((one) => one.precision).filter((name) => name !== state.left);
  if (!names.includes(state.right)) state.right = "";
  $("other").replaceChildren(element("option", "nothing", { value: "" }), ...names.map((name) => element("option", name, { value: name })));
  $("other").value = state.right;
}

async function statistics() {
  try {
    const { model_stats: found } = await (await ask("/v2/models/stats")).json();
    const seen = {};
    for (const one of found) {
      const times = one.inference_stats, name = one.name;
      const ns = ["compute_input", "compute_infer", "compute_output"].reduce((sum, part) => sum + Number(times[part]?.ns || 0), 0);
      const before = seen[name] || { count: 0, ns: 0, queue: 0 };
      seen[name] = { count: before.count + Number(one.inference_count), ns: before.ns + ns, queue: before.queue + Number(times.queue?.ns || 0) };
    }
    return seen;
  } catch {
    return null;
  }
}

/** Mean ms of each step's requests since `before`. A step is counted shortly after its answer, so what is missing is asked for again. */
async function stepTimes(precision, before) {
  for (let tries = 0; before; tries++) {
    const after = await statistics();
    if (!after) break;
    const served = STEPS.map((step) => [step, step === "network" ? `network_${precision}` : step])
      .filter(([, name]) => before[name] && after[name]);
    const counted = served.filter(([, name]) => after[name].count > before[name].count);
    if (counted.length === served.length || tries === 10) {
      return counted.map(([step, name]) => [step, (after[name].ns - before[name].ns) / (after[name].count - before[name].count) / 1e6]);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return [];
}

async function answer(precision) {
  const key = `${precision} ${value("iou")}`;
  if (state.answers[key]) return state.answers[key];
  const query = new URLSearchParams({ precision, confidence: LEAST, iou: value("iou") });
  const form = new FormData();
  form.append("image", state.file, state.name);
  const before = await statistics(), started = performance.now();
  const got = await ask(`/v1/segment?${query}`, { method: "POST", body: form });
  const found = await got.json(), whole = performance.now() - started;
  const steps = await stepTimes(precision, before);
  const [image] = found.images;
  for (const one of image.detections) {
    one.runs = runs(one.mask.counts);
    one.area = area(one.runs);
    const [x1, y1, x2, y2] = one.box;
    one.cut = [Math.max(0, Math.floor(x1)), Math.max(0, Math.floor(y1)), Math.min(image.width, Math.ceil(x2)), Math.min(image.height, Math.ceil(y2))];
  }
  const made = { ...image, precision, version: found.model.version, server: found.server_ms, whole, steps };
  state.answers[key] = made;
  return made;
}

// --- a picture ------------------------------------------------------------------------------------------------------

async function take(file, name) {
  fail("");
  $("summary").textContent = "Working …";
  const number = ++state.number;
  state.file = file;
  state.name = name || file.name || "photo.jpg";
  state.answers = {};
  state.focus = -1;
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(file);
  } catch { /* a format that the browser does not show */ }
  if (number !== state.number) return;
  state.bitmap = bitmap;
  state.drawnThere = false;
  await look();
}

/** Get the answers that the settings need, and show them. */
async function look() {
  if (!state.file || !state.left) return;
  const number = ++state.number;
  document.body.classList.add("busy");
  $("summary").textContent = "Working …";
  if (state.bitmap) { $("empty").hidden = true; $("shown").hidden = false; }
  try {
    const left = await answer(state.left);
    const right = state.right ? await answer(state.right) : null;
    if (number !== state.number) return;
    if (!state.bitmap) {
      const drawn = await ask(`/v1/segment?${new URLSearchParams({ precision: state.left, confidence: value("confidence"), iou: value("iou") })}`, {
        method: "POST", body: state.file, headers: { "Content-Type": "application/octet-stream", Accept: "image/png" },
      });
      state.bitmap = await createImageBitmap(await drawn.blob());
      state.drawnThere = true;
      fail("This browser does not show this format. The server has drawn the picture; sliders do not change it.");
    }
    state.shown = { left, right };
    prepare();
    $("empty").hidden = true;
    $("shown").hidden = false;
    render();
    fail(state.drawnThere ? $("error").textContent : "");
  } catch (error) {
    if (number !== state.number) return;
    state.shown = null;
    $("summary").textContent = "";
    fail(error.message);
    if (!state.bitmap) { $("empty").hidden = false; $("shown").hidden = true; } else plain();
  } finally {
    if (number === state.number) document.body.classList.remove("busy");
  }
}

function plain() {
  const canvas = $("canvas"), scale = Math.min(1, WIDEST / Math.max(state.bitmap.width, state.bitmap.height));
  canvas.width = Math.round(state.bitmap.width * scale);
  canvas.height = Math.round(state.bitmap.height * scale);
  canvas.getContext("2d").drawImage(state.bitmap, 0, 0, canvas.width, canvas.height);
  for (const id of ["divider", "left-name", "right-name", "wipe-row", "comparison", "difference-row"]) $(id).hidden = true;
}

function prepare() {
  const { left, right } = state.shown;
  state.scale = Math.min(1, WIDEST / Math.max(left.width, left.height));
  left.detections.forEach((one, index) => { one.number = index; });
  // The same object has the same color on both sides.
  right?.detections.forEach((one, index) => { one.number = left.detections.length + index; });
  if (right) for (const { i, j } of matched(left.detections, right.detections)) right.detections[j].number = i;
  for (const one of [...left.detections, ...(right?.detections || [])]) {
    if (one.paintedAs === one.number) continue;
    one.painted = painted(cut(one.runs, left.height, one.cut), one.cut, state.scale, [null, [...color(one.number), 255]]);
    one.paintedAs = one.number;
  }
}

const kept = (side) => side.detections.filter((one) => one.score >= value("confidence") && !state.hidden.has(one.class_id));

function draw(context, side) {
  const { scale } = state, { width, height } = context.canvas;
  context.drawImage(state.bitmap, 0, 0, width, height);
  if (state.drawnThere) return;
  const ratio = Math.max(1, width / (context.canvas.clientWidth || width)); // canvas pixels of one on the screen
  const line = 2 * ratio, opacity = value("opacity");
  const shown = side.detections.map((one, index) => ({ one, index })).filter(({ one }) => kept(side).includes(one)).reverse();
  for (const { one, index } of shown) {
    const [x1, y1, x2, y2] = one.box.map((number) => number * scale), faded = side === state.shown.left && state.focus >= 0 && state.focus !== index;
    if ($("masks").checked) {
      context.globalAlpha = faded ? opacity / 5 : opacity;
      context.drawImage(one.painted, one.cut[0] * scale, one.cut[1] * scale);
    }
    context.globalAlpha = faded ? 0.25 : 1;
    if ($("boxes").checked) {
      context.strokeStyle = css(color(one.number));
      context.lineWidth = line;
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
  }
  context.globalAlpha = 1;
  if (!$("labels").checked) return;
  const size = Math.round(12 * ratio);
  context.font = `600 ${size}px system-ui, "Noto Sans", sans-serif`;
  context.textBaseline = "middle";
  for (const { one } of shown) {
    const text = `${one.class_name} ${one.score.toFixed(2)}`, tint = color(one.number);
    const wide = context.measureText(text).width + size * 0.7, tall = size * 1.45;
    const x = Math.max(0, Math.min(one.box[0] * scale, width - wide));
    let y = one.box[1] * scale - tall;
    if (y < 0) y = Math.max(0, Math.min(one.box[1] * scale, height - tall));
    context.fillStyle = css(tint);
    context.fillRect(x, y, wide, tall);
    context.fillStyle = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2] > 140 ? "#000" : "#fff";
    context.fillText(text, x + size * 0.35, y + tall / 2);
  }
}

function render() {
  if (!state.shown) return code();
  const { left, right } = state.shown, canvas = $("canvas");
  canvas.width = Math.round(left.width * state.scale);
  canvas.height = Math.round(left.height * state.scale);
  const context = canvas.getContext("2d"), place = right ? value("wipe") / 100 : 1;
  const between = right && $("difference").checked;
  if (between) {
    context.filter = "grayscale(1) brightness(1.15)";
    context.drawImage(state.bitmap, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.drawImage(differing(left, right).canvas, 0, 0, canvas.width, canvas.height);
  } else {
    draw(context, left);
    if (right) {
      context.save();
      context.beginPath();
      context.rect(place * canvas.width, 0, canvas.width, canvas.height);
      context.clip();
      draw(context, right);
      context.restore();
    }
  }
  const wiping = Boolean(right) && !between;
  for (const id of ["divider", "left-name", "right-name", "wipe-row"]) $(id).hidden = !wiping;
  $("difference-row").hidden = $("comparison").hidden = !right;
  $("frame").classList.toggle("wiping", wiping);
  if (right) {
    $("left-name").textContent = left.precision;
    $("right-name").textContent = right.precision;
    $("divider").style.left = `${canvas.offsetLeft + place * canvas.clientWidth}px`;
    compare(left, right);
  }
  lists();
  code();
}

/** Where the masks of two answers differ, over all detections that are shown. */
function differing(left, right) {
  const map = new Uint8Array(left.width * left.height);
  for (const one of kept(left)) mark(map, one.runs, 1);
  for (const one of kept(right)) mark(map, one.runs, 2);
  const canvas = painted(map, [0, 0, left.width, left.height], state.scale, [null, ONLY_LEFT, ONLY_RIGHT, [255, 255, 255, 70]]);
  let only = 0, both = 0;
  for (const bits of map) if (bits === 3) both++; else if (bits) only++;
  return { canvas, only, both };
}

function compare(left, right) {
  const one = kept(left), other = kept(right), pairs = matched(one, other), { only, both } = differing(left, right);
  const mean = pairs.reduce((sum, pair) => sum + pair.iou, 0) / (pairs.length || 1);
  const percent = only + both ? (100 * only) / (only + both) : 0;
  const parts = [
    `${pairs.length} of ${Math.max(one.length, other.length)} objects in both`,
    pairs.length ? `mean mask IoU ${mean.toFixed(3)}` : "",
    `masks differ in ${percent.toFixed(1)}% of their pixels`,
  ];
  $("comparison").replaceChildren(parts.filter(Boolean).join(", ") + ". ");
  if ($("difference").checked) {
    for (const [tint, side] of [[ONLY_LEFT, left], [ONLY_RIGHT, right]]) {
      const swatch = element("span", "", { className: "swatch" });
      swatch.style.background = css(tint);
      $("comparison").append(document.createElement("br"), swatch, `only in ${side.precision}`);
    }
  }
}

function lists() {
  const { left, right } = state.shown, found = kept(left);
  const named = `${found.length} ${found.length === 1 ? "object" : "objects"}`;
  $("summary").textContent = `${named} · ${left.width}×${left.height} · ${left.precision} version ${left.version} · ${milliseconds(left.server)}`
    + (right ? ` · ${right.precision} ${milliseconds(right.server)}` : "");
  $("objects-row").hidden = state.drawnThere;
  $("objects").replaceChildren(...left.detections.map((one, index) => ({ one, index })).filter(({ one }) => found.includes(one)).map(({ one, index }) => {
    const row = element("tr", "", { tabIndex: 0 }), swatch = element("span", "", { className: "swatch" });
    swatch.style.background = css(color(one.number));
    const name = document.createElement("td");
    name.append(swatch, one.class_name);
    row.append(name, element("td", one.score.toFixed(3)), element("td", one.box.map(Math.round).join(" ")));
    const focus = (on) => () => { state.focus = on ? index : -1; repaint(); };
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) row.addEventListener(event, focus(on));
    return row;
  }));
  classes();
  times();
}

function repaint() {
  const { left, right } = state.shown || {};
  if (left && !(right && $("difference").checked)) {
    const context = $("canvas").getContext("2d");
    draw(context, left);
    if (right) {
      context.save();
      context.beginPath();
      context.rect((value("wipe") / 100) * context.canvas.width, 0, context.canvas.width, context.canvas.height);
      context.clip();
      draw(context, right);
      context.restore();
    }
  }
}

function classes() {
  const { left } = state.shown, counts = new Map(), names = new Map();
  state.served.find((one) => one.precision === left.precision)?.class_names.forEach((name, index) => names.set(index, name));
  for (const one of left.detections) {
    names.set(one.class_id, one.class_name);
    if (one.score >= value("confidence")) counts.set(one.class_id, (counts.get(one.class_id) || 0) + 1);
  }
  const wanted = $("find").value.toLowerCase();
  const shown = [...names].filter(([, name]) => name.toLowerCase().includes(wanted)).sort(([a], [b]) => (counts.get(b) || 0) - (counts.get(a) || 0) || a - b);
  $("classes-row").hidden = state.drawnThere || !names.size;
  $("find").hidden = names.size <= 12;
  const focused = document.activeElement?.dataset?.index;
  $("classes").replaceChildren(...shown.map(([index, name]) => {
    const label = document.createElement("label");
    const box = element("input", "", { type: "checkbox", checked: !state.hidden.has(index) });
    box.dataset.index = index;
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(index); else state.hidden.add(index);
      render();
    });
    label.append(box, element("span", name), element("span", counts.get(index) || ""));
    return label;
  }));
  if (focused !== undefined) $("classes").querySelector(`[data-index="${Number(focused)}"]`)?.focus();
}

function times() {
  const { left, right } = state.shown, rows = [];
  for (const side of [left, right]) {
    if (!side) continue;
    if (right) rows.push(element("p", side.precision, { className: "small" }));
    const rest = Math.max(0, side.server - side.steps.reduce((sum, [, ms]) => sum + ms, 0));
    const parts = [...side.steps, [side.steps.length ? "waiting, other" : "server", rest], ["browser, way", Math.max(0, side.whole - side.server)]];
    for (const [name, ms] of parts) {
      const row = element("div", "", { className: "time" });
      row.append(element("span", name), element("meter", "", { min: 0, max: side.whole, value: ms }), element("span", milliseconds(ms)));
      rows.push(row);
    }
  }
  if (left.steps.length) rows.push(element("p", "Steps: means of the requests meanwhile, from the server's statistics.", { className: "small" }));
  $("times").replaceChildren(...rows);
  $("times-row").hidden = !rows.length;
}

// --- the same call --------------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function code() {
  const names = state.served.find((one) => one.precision === state.left)?.class_names || [];
  const options = { precision: state.left || "int8", confidence: $("confidence").value, iou: $("iou").value };
  if (state.hidden.size && names.length) options.classes = names.filter((_, index) => !state.hidden.has(index)).join(",");
  const name = (state.name || "photo.jpg").replace(/[\u0000-\u001f\u007f]/g, "_"), key = $("key").value;
  const address = `${location.origin}/v1/segment`;
  if (document.querySelector("input[name=language]:checked").value === "curl") {
    const lines = [`curl -F ${quoted(`image=@${name}`)}`];
    for (const [option, given] of Object.entries(options)) lines.push(`-F ${quoted(`${option}=${given}`)}`);
    if (key) lines.push("-H \"X-API-Key: $KEY\"");
    $("code").textContent = [...lines, address].join(" \\\n  ");
  } else {
    const given = Object.entries(options).map(([option, one]) => `"${option}": ${JSON.stringify(one)}`).join(", ");
    $("code").textContent = [
      "import requests", "", `with open(${JSON.stringify(name)}, "rb") as image:`,
      "    answer = requests.post(", `        "${address}",`, '        files={"image": image},', `        data={${given}},`,
      ...(key ? ['        headers={"X-API-Key": KEY},'] : []), "    )", "answer.raise_for_status()",
      'for found in answer.json()["images"][0]["detections"]:', '    print(found["class_name"], found["score"], found["box"])',
    ].join("\n");
  }
}

// --- what people do -------------------------------------------------------------------------------------------------

function outputs() {
  for (const output of document.querySelectorAll("output")) output.textContent = Number($(output.htmlFor.value).value).toFixed(2);
}

let later;
for (const id of ["confidence", "opacity", "iou"]) $(id).addEventListener("input", () => {
  outputs();
  if (id === "iou") { clearTimeout(later); later = setTimeout(look, 250); code(); } else render();
});
for (const id of ["masks", "boxes", "labels", "difference"]) $(id).addEventListener("change", render);
$("wipe").addEventListener("input", render);
$("find").addEventListener("input", () => state.shown && classes());
$("key-row").addEventListener("submit", async (event) => {
  event.preventDefault();
  fail("");
  try { await models(); await look(); } catch (error) { fail(error.message); }
});
$("precisions").addEventListener("change", (event) => { state.left = event.target.value; others(); look(); code(); });
$("other").addEventListener("change", (event) => { state.right = event.target.value; if (!state.right) $("difference").checked = false; look(); });
$("languages").addEventListener("change", code);
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("code"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
});
$("save").addEventListener("click", () => $("canvas").toBlob((blob) => {
  const link = element("a", "", { href: URL.createObjectURL(blob), download: `${state.name.replace(/\.[^.]*$/, "")}-segmented.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}));

for (const button of document.querySelectorAll(".choose")) button.addEventListener("click", () => $("file").click());
for (const id of ["file", "shoot"]) $(id).addEventListener("change", (event) => {
  if (event.target.files[0]) take(event.target.files[0]);
  event.target.value = "";
});
for (const event of ["dragover", "drop", "dragleave"]) document.addEventListener(event, (dragged) => {
  dragged.preventDefault();
  $("stage").classList.toggle("over", event === "dragover");
  if (event === "drop" && dragged.dataTransfer.files[0]) take(dragged.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const item = [...event.clipboardData.items].find((one) => one.kind === "file" && one.type.startsWith("image/"));
  if (item) take(item.getAsFile(), "pasted.png");
});

function wipeTo(event) {
  if (!$("frame").classList.contains("wiping")) return;
  const place = $("canvas").getBoundingClientRect();
  $("wipe").value = Math.max(0, Math.min(100, (100 * (event.clientX - place.left)) / place.width));
  render();
}
$("frame").addEventListener("pointerdown", (event) => {
  if (!$("frame").classList.contains("wiping")) return;
  $("frame").setPointerCapture(event.pointerId);
  wipeTo(event);
});
$("frame").addEventListener("pointermove", (event) => { if ($("frame").hasPointerCapture(event.pointerId)) wipeTo(event); });
addEventListener("resize", () => { if (state.shown?.right) render(); });

let stream = null;
function closed() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
}
for (const button of document.querySelectorAll(".camera")) button.addEventListener("click", async () => {
  if (!navigator.mediaDevices?.getUserMedia) return $("shoot").click(); // not over plain HTTP from elsewhere
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    return fail(`The camera cannot be used: ${error.message}`);
  }
  $("take").disabled = true; // until a frame has come
  $("video").srcObject = stream;
  $("camera").showModal();
  $("video").play().catch(() => {}); // it was closed meanwhile
});
$("video").addEventListener("loadeddata", () => { $("take").disabled = false; });
$("camera").addEventListener("close", closed);
$("cancel").addEventListener("click", () => $("camera").close());
$("take").addEventListener("click", () => {
  const video = $("video"), canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  $("camera").close();
  canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 }).then((blob) => take(blob, "camera.jpg"));
});

outputs();
code();
models().catch((error) => fail(error.message));

// The page: what is shown, and what buttons and keys do. State: all conversations, the one at hand, the answer under way.
import * as api from "./api.js";
import { addLayers, MOST } from "./inside.js";
import * as options from "./options.js";
import * as store from "./store.js";
import { alternatives, dropsBlank, kept, textOf } from "./tokens.js";
import { body, message } from "./view.js";

const $ = (id) => document.getElementById(id);
let all = store.readAll(), here = all[0] ?? store.newConversation(), running = null, files = [], asTokens = null, seen = null, size = 0, used = 0;
const say = (text) => { $("status").textContent = text; };

function save() {
  all = here.leaf === null ? all.filter((c) => c !== here) : [here, ...all.filter((c) => c !== here)];
  if (!store.writeAll(all)) say("The browser's room is full: older conversations are kept without their tokens' alternatives.");
}

function drawList() {
  $("list").replaceChildren(...all.map((c) => {
    const item = document.createElement("li"), open = document.createElement("button"), drop = document.createElement("button");
    open.type = drop.type = "button";
    open.textContent = c.title || "Untitled";
    if (c === here) open.setAttribute("aria-current", "true");
    open.onclick = () => go(c);
    drop.textContent = "✕";
    drop.setAttribute("aria-label", `Delete ${c.title || "Untitled"}`);
    drop.onclick = () => { if (!confirm(`Delete "${c.title || "Untitled"}"?`)) return; stop(); all = all.filter((x) => x !== c); store.writeAll(all); go(c === here ? all[0] ?? store.newConversation() : here); };
    item.append(open, drop);
    return item;
  }));
}

function draw() {
  drawList();
  const nodes = store.path(here);
  if (nodes.length) $("chat").replaceChildren(...nodes.map((n) => message(here, n, actions, { busy: running?.node === n, asTokens: asTokens === n.id, trace: seen?.id === n.id ? seen.trace : null })));
  else {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "Nothing leaves this machine: the model runs here, and conversations are kept in this browser.";
    $("chat").replaceChildren(empty);
  }
  if (running) $("chat").scrollTop = $("chat").scrollHeight;
  const last = [...nodes].reverse().find((n) => n.used);
  used = last?.used ?? 0;
  $("context").textContent = size ? `${used} / ${size}` : "";
}

function go(c) {
  stop();
  here = c;
  closeTokens();
  $("side").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
  draw();
  $("entry").focus();
}

function stop() { running?.abort.abort(); }

function closeTokens() { asTokens = seen = null; $("tokens").hidden = true; }

/** What the server is sent of the conversation up to a message. */
function messagesTo(c, id, system) {
  const found = store.path(c, id).map((n) => ({ role: n.role, content: [...(n.files ?? []).map((f) => `${f.name}:\n\n${f.text}\n`), n.content].join("\n") }));
  return system ? [{ role: "system", content: system }, ...found] : found;
}

/** The answer to the path that ends with `parent`. begun: tokens that it begins with; text: of these. */
async function answer(parent, begun = null, text = "") {
  if (running) return;
  const node = store.add(here, parent, "assistant", text, { model: $("model").value, tokens: begun ?? [] });
  const c = here, mine = (running = { node, abort: new AbortController() });
  busy(true);
  draw();
  const messages = messagesTo(c, parent, options.system());
  if (options.system()) node.system = options.system();
  if (begun) messages.push({ role: "assistant", content: node.content });
  const detail = options.wantsTokens() ? { logprobs: true, top_logprobs: 8 } : {};
  if (!options.wantsTokens()) node.tokens = undefined;
  const base = node.content;
  let first = true, painted = 0, since = 0, came = "";
  try {
    for await (const e of api.chat({ model: $("model").value, messages, stream: true, stream_options: { include_usage: true }, ...options.sampling(), ...detail }, mine.abort.signal)) {
      const choice = e.choices[0], delta = choice?.delta ?? {};
      if (delta.reasoning_content) node.thought = (node.thought ?? "") + delta.reasoning_content;
      came += delta.content ?? "";
      node.content = base + came;
      if (node.tokens && choice?.logprobs) node.tokens.push(...choice.logprobs.content.map(kept));
      if (first && (delta.content || delta.reasoning_content)) { first = false; since = performance.now(); say("The answer has begun."); }
      if (e.usage) {
        node.used = e.usage.total_tokens;
        node.count = e.usage.completion_tokens;
        node.rate = e.timings?.predicted_per_second ?? (1000 * node.count) / (performance.now() - since);
      }
      if (e.seed !== undefined) node.seed = e.seed;
      if (performance.now() - painted > 60 && here === c) { painted = performance.now(); paint(node); }
    }
    say("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else { node.error = error.message; say(`Error: ${error.message}`); }
  }
  if (running === mine) running = null;
  if (!node.content && !node.thought && !node.error) node.error = "The model ended its answer at once.";
  busy(false);
  const other = here;
  here = c; save(); here = other;
  draw();
}

/** The growing answer alone; the view follows if it was at the end. */
function paint(node) {
  const chat = $("chat"), end = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
  const old = chat.querySelector(`article[data-id="${node.id}"]`);
  if (!old) return;
  if (node.thought) old.replaceWith(message(here, node, actions, { busy: true, asTokens: false }));
  else old.querySelector(".text").replaceWith(body(node, actions, { busy: true, asTokens: false }));
  if (end) chat.scrollTop = chat.scrollHeight;
}

function busy(now) {
  $("send").hidden = now;
  $("stop").hidden = !now;
  $("chat").setAttribute("aria-busy", String(now));
}

const actions = {
  async copy(node) {
    try { await navigator.clipboard.writeText(node.content); say("Copied."); } catch { say("The browser does not allow copying here."); }
  },
  again(node) { if (!running) { closeTokens(); answer(node.parent); } },
  branch(node) { if (!running) { closeTokens(); store.show(here, node); save(); draw(); } },
  tokens(node) { const was = asTokens; closeTokens(); asTokens = was === node.id ? null : node.id; draw(); if (asTokens) say("Choose a token to see its alternatives."); },
  chosen(node, at) {
    $("options").hidden = true;
    for (const b of document.querySelectorAll(".token.chosen")) b.classList.remove("chosen");
    document.querySelector(`article[data-id="${node.id}"] .token[data-at="${at}"]`)?.classList.add("chosen");
    const trace = seen?.id === node.id ? seen.trace : null;
    alternatives($("tokens"), node.tokens, at, (t) => {
      if (running) return;
      closeTokens();
      const begun = [...node.tokens.slice(0, at), { ...t, top: node.tokens[at].top }];
      answer(node.parent, begun, textOf(begun).slice(dropsBlank(node.tokens, node.content) ? 1 : 0));
    },
      () => { $("tokens").hidden = true; });
    if (trace) addLayers($("tokens"), trace, at);
  },
  async inside(node) {
    if (seen?.id === node.id) { seen = null; $("tokens").hidden = true; return draw(); }
    const mine = (seen = { id: node.id, trace: null });
    say("Looking inside: the model reads its answer again.");
    try {
      const trace = await api.trace({ model: node.model, messages: messagesTo(here, node.parent, node.system), answer: node.tokens.slice(0, MOST).map((t) => t.id), lens: true });
      if (seen !== mine) return;
      mine.trace = trace;
      draw();
      say("Choose a token to see all layers.");
    } catch (error) { if (seen === mine) { seen = null; say(`Error: ${error.message}`); } }
  },
  edit(node) {
    if (running) return;
    const article = document.querySelector(`article[data-id="${node.id}"]`), area = document.createElement("textarea"), row = document.createElement("div");
    const ok = document.createElement("button"), no = document.createElement("button");
    area.value = node.content;
    area.setAttribute("aria-label", "The message, to be changed");
    ok.textContent = "Send as a new branch"; no.textContent = "Leave it";
    ok.type = no.type = "button";
    ok.onclick = () => { const text = area.value.trim(); if (text) answer(store.add(here, node.parent, "user", text, { files: node.files }).id); };
    no.onclick = draw;
    row.className = "tools";
    row.append(ok, no);
    article.replaceChildren(area, row);
    area.focus();
  },
};

async function attach(list) {
  for (const file of list) {
    if (file.size > 1 << 20) { say(`${file.name} is larger than 1 MiB.`); continue; }
    try { files.push({ name: file.name, text: new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()) }); } catch { say(`${file.name} is no text in UTF-8.`); }
  }
  $("files").replaceChildren(...files.map((f) => {
    const b = document.createElement("button");
    b.type = "button";
    b.textContent = `${f.name} ✕`;
    b.setAttribute("aria-label", `Take ${f.name} away`);
    b.onclick = () => { files = files.filter((x) => x !== f); attach([]); };
    return b;
  }));
}

const grow = () => { const e = $("entry"); e.style.height = "auto"; e.style.height = `${e.scrollHeight + 2}px`; };

function send() {
  const text = $("entry").value.trim();
  if ((!text && !files.length) || running) return;
  closeTokens();
  const node = store.add(here, here.leaf, "user", text, files.length ? { files } : {});
  files = [];
  attach([]);
  $("entry").value = "";
  grow();
  save();
  answer(node.id);
}

function exportAll() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ llamina: 1, conversations: all }, null, 1)], { type: "application/json" }));
  link.download = "llamina-conversations.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importAll(file) {
  try {
    const data = JSON.parse(await file.text()), found = (data.conversations ?? []).filter(store.isSound), known = new Set(all.map((c) => c.id));
    all = [...found.filter((c) => !known.has(c.id)), ...all];
    store.writeAll(all);
    say(`${found.length} conversations read.`);
    go(all[0] ?? here);
  } catch { say(`${file.name} is no export of this page.`); }
}

async function readModels() {
  try {
    const found = await api.models(), last = localStorage.getItem("llamina.model");
    $("model").replaceChildren(...found.map((m) => new Option(m.id, m.id, false, m.id === last)));
    await readSettings();
  } catch (error) {
    say(error.status === 401 ? "This server asks for a key: it goes into the options." : `The models cannot be read: ${error.message}`);
    options.fill($("options"), {}, () => toggle(false));
    if (error.status === 401) toggle(true);
  }
}

async function readSettings() {
  const found = await api.settings($("model").value);
  size = found.n_ctx;
  options.fill($("options"), found.params, () => toggle(false));
  draw();
}

function toggle(open) {
  $("options").hidden = !open;
  if (open) $("tokens").hidden = true;
  $("options-button").setAttribute("aria-expanded", String(open));
  if (open) $("options").querySelector("textarea")?.focus(); else $("options-button").focus();
}

function theme(name) {
  if (name) { document.documentElement.dataset.theme = name; localStorage.setItem("llamina.theme", name); }
}

$("form").addEventListener("submit", (e) => { e.preventDefault(); send(); });
$("entry").addEventListener("input", grow);
$("entry").addEventListener("keydown", (e) => { if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); send(); } });
$("stop").onclick = stop;
$("new").onclick = () => go(store.newConversation());
$("menu").onclick = () => $("menu").setAttribute("aria-expanded", String($("side").classList.toggle("open")));
$("options-button").onclick = () => toggle($("options").hidden);
$("theme").onclick = () => theme((document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark" ? "light" : "dark");
$("attach").onclick = () => $("attach-files").click();
$("attach-files").onchange = (e) => { attach([...e.target.files]); e.target.value = ""; };
$("export").onclick = exportAll;
$("import").onclick = () => $("import-file").click();
$("import-file").onchange = (e) => { if (e.target.files[0]) importAll(e.target.files[0]); e.target.value = ""; };
$("model").onchange = () => { localStorage.setItem("llamina.model", $("model").value); readSettings().catch((e) => say(e.message)); };
document.addEventListener("key", readModels);
document.addEventListener("keydown", (e) => {
  if (e.key !== "Escape") return;
  if (running) stop();
  else if (!$("tokens").hidden) $("tokens").hidden = true;
  else if (!$("options").hidden) toggle(false);
  $("side").classList.remove("open");
});
theme(localStorage.getItem("llamina.theme"));
if (matchMedia("(max-width: 760px)").matches) $("entry").placeholder = "Write a message";
draw();
readModels();

// Conversations, kept in this browser alone: trees of messages, of which one path is shown.
//   conversation = {id, title, leaf, nodes: {id: {id, parent, role, content, …}}}
const KEY = "llamina.conversations", OPTIONS = "llamina.options";

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");
export const newConversation = () => ({ id: newId(), title: "", leaf: null, nodes: {} });

const read = (key, otherwise) => { try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; } };
export const readOptions = () => read(OPTIONS, {});
export const writeOptions = (options) => localStorage.setItem(OPTIONS, JSON.stringify(options));
export const readAll = () => read(KEY, []).filter(isSound);

/** Writes all; without the oldest ones' token alternatives where the browser has no more room. -> whether all could be kept */
export function writeAll(all) {
  for (let spared = 0; spared <= all.length; spared++) {
    const kept = all.map((c, i) => (i < all.length - spared ? c : bare(c)));
    try { localStorage.setItem(KEY, JSON.stringify(kept)); return spared === 0; } catch { /* full: spare one more */ }
  }
  return false;
}

const bare = (c) => ({ ...c, nodes: Object.fromEntries(Object.entries(c.nodes).map(([id, n]) => [id, { ...n, tokens: undefined }])) });

export function isSound(c) {
  const nodes = c && typeof c === "object" && typeof c.id === "string" && c.nodes && typeof c.nodes === "object" ? Object.entries(c.nodes) : null;
  return !!nodes && (c.leaf === null || !!c.nodes[c.leaf]) && nodes.every(([id, n]) => n && n.id === id && typeof n.content === "string"
    && ["user", "assistant"].includes(n.role) && (n.parent === null || (c.nodes[n.parent] && n.parent !== id)))
    && nodes.every(([id]) => !isRing(c, id));
}

function isRing(c, id) {
  const seen = new Set();
  for (; id !== null; id = c.nodes[id].parent) { if (seen.has(id)) return true; seen.add(id); }
  return false;
}

/** From the first message to the leaf. */
export function path(c, leaf = c.leaf) {
  const found = [];
  for (let id = leaf; id !== null; id = c.nodes[id].parent) found.unshift(c.nodes[id]);
  return found;
}

export const siblings = (c, node) => Object.values(c.nodes).filter((n) => n.parent === node.parent);

export function add(c, parent, role, content, more = {}) {
  const node = { id: newId(), parent, role, content, ...more };
  c.nodes[node.id] = node;
  c.leaf = node.id;
  if (!c.title && role === "user") c.title = content.trim().split("\n")[0].slice(0, 60);
  return node;
}

/** Shows a message's branch: down to its newest leaf. */
export function show(c, node) {
  for (let next = node; next; next = Object.values(c.nodes).filter((n) => n.parent === next.id).pop()) c.leaf = next.id;
}

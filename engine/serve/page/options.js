// Sampling options. A field that is left empty is not sent: the model's own default, shown in it, holds.
import { readOptions, writeOptions } from "./store.js";
import { setKey } from "./api.js";

const FIELDS = [
  ["temperature", "Temperature", "0: always the most likely token", 0, 5, 0.05], ["top_p", "Top p", "only the likeliest tokens that together have this share", 0, 1, 0.01],
  ["top_k", "Top k", "only this many of the likeliest; 0: all", 0, 1000, 1], ["min_p", "Min p", "only tokens with this share of the likeliest's", 0, 1, 0.01],
  ["repeat_penalty", "Repeat penalty", "1: none", 0.1, 3, 0.05], ["max_tokens", "Most tokens of an answer", "empty: until the context is full", 1, 1000000, 1],
  ["seed", "Seed", "the same seed gives the same answer; empty: drawn", 0, 4294967295, 1]];
const make = (name, props = {}, ...children) => { const e = Object.assign(document.createElement(name), props); e.append(...children); return e; };
let options = readOptions();

export const system = () => options.system ?? "";
export const wantsTokens = () => options.tokens !== false;
/** For the request: what was set, and nothing else. */
export const sampling = () => Object.fromEntries(FIELDS.map(([name]) => [name, options[name]]).filter(([, v]) => typeof v === "number"));

/** Builds the panel. defaults: the model's, by name. */
export function fill(panel, defaults, close) {
  const set = (name, value) => { options = { ...options, [name]: value }; writeOptions(options); };
  const prompt = make("textarea", { id: "o-system", rows: 4, value: system() });
  prompt.addEventListener("input", () => set("system", prompt.value));
  const tokens = make("input", { type: "checkbox", id: "o-tokens", checked: wantsTokens() });
  tokens.addEventListener("change", () => set("tokens", tokens.checked));
  const key = make("input", { type: "password", id: "o-key", autocomplete: "off" });
  key.addEventListener("change", () => { setKey(key.value); document.dispatchEvent(new Event("key")); });
  const fields = FIELDS.flatMap(([name, label, help, min, max, step]) => {
    const own = defaults[name], input = make("input", { type: "number", id: `o-${name}`, min, max, step, value: options[name] ?? "" });
    if (typeof own === "number" && own >= 0 && !["seed", "max_tokens"].includes(name)) input.placeholder = `the model's own: ${+own.toFixed(4)}`;
    input.setAttribute("aria-describedby", `h-${name}`);
    input.addEventListener("change", () => set(name, input.value === "" || !input.validity.valid ? undefined : Number(input.value)));
    return [make("label", { htmlFor: input.id }, label), input, make("span", { className: "help", id: `h-${name}` }, help)];
  });
  const clear = make("button", { type: "button" }, "The model's own options");
  clear.addEventListener("click", () => { options = { system: options.system, tokens: options.tokens }; writeOptions(options); fill(panel, defaults, close); });
  panel.replaceChildren(make("h2", {}, "Options", make("button", { type: "button", ariaLabel: "Close", onclick: close }, "✕")),
    make("label", { htmlFor: "o-system" }, "System prompt"), prompt, ...fields, make("p", {}, make("label", {}, tokens, " Keep each token's alternatives")), clear,
    make("label", { htmlFor: "o-key" }, "API key, if the server asks for one"), key);
}

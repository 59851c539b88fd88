// What the model thought while it wrote: surprise, rank, and what it would have said had its pass ended after a layer (the logit lens). From the server's /trace.
import { percent, shown } from "./tokens.js";

const make = (name, props = {}, ...children) => { const e = Object.assign(document.createElement(name), props); e.append(...children); return e; };
const head = (text, title = "") => make("th", { scope: "col", title }, text);
const after = (layer) => (layer < 0 ? "embedding" : `layer ${layer}`);
/** The server tells of no more tokens at once. */
export const MOST = 1024;

/** Whether /trace can be asked: answers that were kept by an older page have no ids. */
export const canLook = (tokens) => !!tokens?.length && tokens.every((t) => Number.isInteger(t.id));

/** Places in trace.layers for columns: at most `most`, evenly spread, the last one always. */
export function columns(layers, most) {
  const n = Math.min(most, layers.length);
  return [...new Set(Array.from({ length: n }, (_, i) => Math.round(((i + 1) * (layers.length - 1)) / n)))];
}

const meter = (value, max) => { const m = make("meter", { min: 0, max, value: Math.min(value, max) }); m.setAttribute("aria-hidden", "true"); return m; };
const cell = (choice, token) => {
  const same = choice.id === token.id, td = make("td", { className: `lens l${Math.min(4, Math.floor(choice.prob * 5))}`, title: `${percent(choice.prob)}; what came has rank ${choice.rank}` });
  td.append(same ? make("strong", {}, shown(choice.bytes)) : shown(choice.bytes), make("span", { className: "hidden" }, ` ${percent(choice.prob)}`));
  return td;
};

/** The answer's tokens line by line, with columns. chosen(index) is called for the one that is asked about. */
export function table(trace, chosen, most = 5) {
  const places = columns(trace.layers, most), body = make("tbody");
  trace.tokens.slice(1).forEach((token, i) => {
    const button = make("button", { type: "button" }, shown(token.bytes));
    button.addEventListener("click", () => chosen(i));
    const surprise = make("td", { className: "surprise" }, token.surprise.toFixed(2), meter(token.surprise, 8));
    body.append(make("tr", {}, make("th", { scope: "row" }, button), surprise, make("td", { className: "number" }, String(token.rank)),
      make("td", { className: "number" }, token.settled < 0 ? "emb." : String(token.settled)), ...places.map((n) => cell(token.lens[n], token))));
  });
  const heads = [head("Token"), head("Surprise", "-ln p, in nats: 0 if there was no doubt"), head("Rank", "1: the model's first choice"),
    head("Settled", "the layer after which the first choice stayed what it is"), ...places.map((n) => head(trace.layers[n] < 0 ? "emb." : `after ${trace.layers[n]}`))];
  const caption = make("caption", {}, "How surprising each token was, and the model's first choice in its place after some layers: the stronger the colour, the surer. Bold: what came.");
  const around = make("div", { className: "inside", tabIndex: 0 }, make("table", {}, caption, make("thead", {}, make("tr", {}, ...heads)), body));
  around.setAttribute("role", "region");
  around.setAttribute("aria-label", "Surprise and layers, by token");
  return around;
}

/** Adds all layers of one token to the panel of its alternatives. */
export function addLayers(panel, trace, at) {
  const token = trace.tokens[at + 1];
  if (!token) return;
  const rows = token.lens.map((choice, n) => make("tr", {}, make("th", { scope: "row" }, after(trace.layers[n])), cell(choice, token),
    make("td", { className: "number" }, percent(choice.prob)), make("td", { className: "number" }, String(choice.rank)))).reverse();
  panel.append(make("p", {}, `Surprise ${token.surprise.toFixed(2)} nats, rank ${token.rank}; ${token.entropy.toFixed(2)} nats were to be expected. Settled after ${token.settled < 0 ? "the embedding" : `layer ${token.settled}`}.`),
    make("table", { className: "layers" }, make("caption", {}, "The first choice after each layer, its chance, and the rank of what came"),
      make("thead", {}, make("tr", {}, head("After"), head("Choice"), head("Chance"), head("Rank"))), make("tbody", {}, ...rows)));
}

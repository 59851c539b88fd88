// The view of tokens: an answer as it was drawn, and for the token chosen, what else could have stood there and how likely it was.
const make = (name, props = {}, ...children) => { const e = Object.assign(document.createElement(name), props); e.append(...children); return e; };
export const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.01 ? `${(100 * p).toFixed(1)} %` : p >= 1e-5 ? `${(100 * p).toFixed(3)} %` : "< 0.001 %");

/** One of the server's entries -> what is kept: id, bytes, log-probability, alternatives. */
export const kept = (entry) => ({ id: entry.id, b: entry.bytes, p: entry.logprob, top: entry.top_logprobs.map((t) => ({ id: t.id, b: t.bytes, p: t.logprob })) });

/** The text of tokens; characters may be spread over several. */
export const textOf = (tokens) => new TextDecoder().decode(Uint8Array.from(tokens.flatMap((t) => t.b)));

/** A token's own text, its blanks made visible if there is nothing else. */
export function shown(bytes) {
  const text = new TextDecoder().decode(Uint8Array.from(bytes));
  if (text.includes("\ufffd")) return bytes.map((b) => `<${b.toString(16).padStart(2, "0")}>`).join("");
  return text.trim() ? text.replace(/^ +| +$/g, (s) => "␣".repeat(s.length)) : text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "(nothing)";
}

/** Whether the answer's text leaves out the blank that its first token begins with (SentencePiece vocabularies write one before every word). */
export const dropsBlank = (tokens, content) => textOf(tokens.slice(0, 1)).startsWith(" ") && !content.startsWith(" ");

/** Tokens as buttons in the line; one whose character is not yet whole is joined to the next. chosen(index) is called on a click. Arrow keys go from one to
    the next, so that Tab passes them all at once. */
export function spans(tokens, content, chosen) {
  const found = document.createDocumentFragment();
  for (let i = 0; i < tokens.length;) {
    let end = i + 1, text = textOf(tokens.slice(i, end));
    while (text.includes("\ufffd") && end < tokens.length && end - i < 4) text = textOf(tokens.slice(i, ++end));
    if (!i && dropsBlank(tokens, content)) text = text.slice(1);
    const at = i, p = Math.exp(Math.min(...tokens.slice(i, end).map((t) => t.p)));
    const button = make("span", { tabIndex: i ? -1 : 0, className: `token p${p > 0.7 ? 0 : p > 0.3 ? 1 : p > 0.08 ? 2 : 3}`, title: percent(p) }, text);
    button.dataset.at = at;
    button.setAttribute("role", "button");
    button.setAttribute("aria-label", `${shown(new TextEncoder().encode(text).reduce((a, b) => [...a, b], []))}, ${percent(p)}`);
    button.addEventListener("click", () => chosen(at));
    button.addEventListener("keydown", (e) => {
      const next = { ArrowRight: button.nextElementSibling, ArrowLeft: button.previousElementSibling }[e.key];
      if (e.key === "Enter" || e.key === " ") chosen(at);
      else if (next) { button.tabIndex = -1; next.tabIndex = 0; next.focus(); } else return;
      e.preventDefault();
    });
    found.append(button);
    i = end;
  }
  return found;
}

/** Fills the panel with the alternatives to tokens[at]. goOn(alternative) is called when one is taken. */
export function alternatives(panel, tokens, at, goOn, close) {
  const token = tokens[at], rest = 1 - token.top.reduce((sum, t) => sum + Math.exp(t.p), 0);
  const same = (t) => t.b.length === token.b.length && t.b.every((b, i) => b === token.b[i]);
  const listed = token.top.some(same) ? token.top : [...token.top, token];
  const title = make("h2", {}, `Token ${at + 1} of ${tokens.length}`, make("button", { type: "button", ariaLabel: "Close", onclick: close }, "✕"));
  const list = make("ol");
  for (const t of listed) {
    const meter = make("meter", { min: 0, max: 1, value: Math.exp(t.p) });
    meter.setAttribute("aria-hidden", "true");
    const button = make("button", { type: "button", className: same(t) ? "chosen" : "", disabled: same(t) }, make("code", {}, shown(t.b)), make("span", {}, percent(Math.exp(t.p))), meter);
    button.addEventListener("click", () => goOn(t));
    list.append(make("li", {}, button));
  }
  panel.replaceChildren(title, make("p", {}, "What the model thought likely here, before sampling. Take another token and the answer goes on from it, as a branch of its own."), list,
    make("p", {}, rest > 1e-6 ? `All others together: ${percent(rest)}` : ""));
  panel.hidden = false;
}

// One message as an article: its text, its thoughts, what can be done with it.
import { canLook, table } from "./inside.js";
import { markdown } from "./markdown.js";
import { siblings } from "./store.js";
import { spans } from "./tokens.js";

const make = (name, props = {}, ...children) => { const e = Object.assign(document.createElement(name), props); e.append(...children); return e; };
const action = (label, call) => make("button", { type: "button", onclick: call }, label);

/** what: actions by name (copy, edit, again, branch, tokens, chosen, inside); state: {busy, asTokens, trace} */
export function message(c, node, what, state) {
  const article = make("article", { className: node.role });
  article.dataset.id = node.id;
  article.setAttribute("aria-busy", String(state.busy));
  article.append(make("div", { className: "who" }, node.role === "user" ? "You" : node.model || "Model"));
  for (const file of node.files ?? []) article.append(make("div", { className: "tools" }, `with ${file.name}`));
  if (node.thought) {
    const details = make("details", { className: "thought", open: state.busy && !node.content }, make("summary", {}, "Thoughts"), node.thought);
    article.append(details);
  }
  article.append(body(node, what, state));
  if (state.asTokens && state.trace) article.append(table(state.trace, (at) => what.chosen(node, at)));
  if (node.error) article.append(make("p", { className: "error" }, node.error));
  if (!state.busy) article.append(tools(c, node, what, state));
  return article;
}

/** The text alone, for what comes while an answer grows. */
export function body(node, what, state) {
  const text = make("div", { className: "text" });
  if (node.role === "user") text.append(node.content);
  else if (state.asTokens && node.tokens) {
    text.style.whiteSpace = "pre-wrap";
    text.append(spans(node.tokens, node.content, (at) => what.chosen(node, at)));
  } else text.append(markdown(node.content));
  return text;
}

function tools(c, node, what, state) {
  const row = make("div", { className: "tools" }), all = siblings(c, node), at = all.indexOf(node);
  if (all.length > 1) {
    const to = (step, label) => { const b = action(step < 0 ? "‹" : "›", () => what.branch(all[at + step])); b.ariaLabel = label; b.disabled = !all[at + step]; return b; };
    row.append(to(-1, "Earlier branch"), `${at + 1} of ${all.length}`, to(1, "Later branch"));
  }
  row.append(action("Copy", () => what.copy(node)));
  if (node.role === "user") row.append(action("Edit", () => what.edit(node)));
  else {
    row.append(action("Again", () => what.again(node)));
    if (node.tokens?.length) {
      const toggle = action("Tokens", () => what.tokens(node));
      toggle.setAttribute("aria-pressed", String(state.asTokens));
      row.append(toggle);
      if (state.asTokens && canLook(node.tokens)) {
        const look = action("Surprise and layers", () => what.inside(node));
        look.setAttribute("aria-pressed", String(!!state.trace));
        row.append(look);
      }
    }
    if (node.rate) row.append(make("span", {}, `${node.count} tokens, ${node.rate.toFixed(1)} a second${node.seed === undefined ? "" : ` · seed ${node.seed}`}`));
  }
  return row;
}

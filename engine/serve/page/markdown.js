// Markdown as DOM nodes. Text stays text: there is no way from a model's words to markup, and links go to http(s) and mail alone.
const make = (name, ...children) => { const e = document.createElement(name); e.append(...children); return e; };

/** A text -> a fragment of blocks. */
export function markdown(text) {
  const found = document.createDocumentFragment(), lines = text.replace(/\r\n?/g, "\n").split("\n");
  for (let i = 0; i < lines.length;) i = block(lines, i, found);
  return found;
}

const LIST = /^(\s*)([-*+]|\d{1,9}[.)])\s+/, HEAD = /^(#{1,6})\s+(.*?)\s*#*$/, FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/, RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;

function block(lines, i, into) {
  const line = lines[i];
  let m;
  if (!line.trim()) return i + 1;
  if ((m = line.match(FENCE))) {
    let end = i + 1;
    while (end < lines.length && !(lines[end].trim().startsWith(m[1]) && !lines[end].trim().slice(m[1].length).trim())) end++;
    const code = make("code", lines.slice(i + 1, end).join("\n")), pre = make("pre", code);
    pre.tabIndex = 0;
    if (m[2]) code.dataset.language = m[2];
    into.append(pre);
    return end + 1;
  }
  if ((m = line.match(HEAD))) { into.append(make(`h${Math.min(6, m[1].length + 2)}`, ...inline(m[2]))); return i + 1; }
  if (RULE.test(line)) { into.append(make("hr")); return i + 1; }
  if (line.startsWith(">")) {
    let end = i;
    while (end < lines.length && lines[end].startsWith(">")) end++;
    into.append(make("blockquote", markdown(lines.slice(i, end).map((l) => l.replace(/^> ?/, "")).join("\n"))));
    return end;
  }
  if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) return table(lines, i, into);
  if ((m = line.match(LIST))) return list(lines, i, into, m);
  let end = i + 1;
  while (end < lines.length && lines[end].trim() && ![FENCE, HEAD, RULE, LIST, /^>/].some((r) => r.test(lines[end]))) end++;
  into.append(make("p", ...inline(lines.slice(i, end).join("\n"))));
  return end;
}

function list(lines, i, into, first) {
  const ordered = /\d/.test(first[2]), found = make(ordered ? "ol" : "ul"), indent = first[1].length;
  if (ordered) found.start = parseInt(first[2], 10);
  while (i < lines.length) {
    const m = lines[i].match(LIST);
    if (!m || m[1].length !== indent || /\d/.test(m[2]) !== ordered) break;
    const inner = [lines[i].slice(m[0].length)];
    for (i++; i < lines.length && (lines[i].startsWith(" ".repeat(indent + 2)) || (!lines[i].trim() && lines[i + 1]?.startsWith(" ".repeat(indent + 2)))); i++) {
      inner.push(lines[i].replace(new RegExp(`^ {0,${Math.min(m[0].length, indent + 4)}}`), ""));
    }
    const simple = inner.length === 1;
    found.append(make("li", ...(simple ? inline(inner[0]) : [markdown(inner.join("\n"))])));
    if (!lines[i]?.trim() && lines[i + 1]?.match(LIST)) i++;
  }
  into.append(found);
  return i;
}

function table(lines, i, into) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((c) => c.trim());
  const found = make("table", make("thead", make("tr", ...cells(lines[i]).map((c) => make("th", ...inline(c))))));
  const rows = make("tbody");
  for (i += 2; i < lines.length && lines[i].includes("|"); i++) rows.append(make("tr", ...cells(lines[i]).map((c) => make("td", ...inline(c)))));
  found.append(rows);
  found.tabIndex = 0;
  into.append(found);
  return i;
}

const INLINE = /(`+)([^]*?[^`])\1(?!`)|\*\*(?=\S)([^]+?\S)\*\*|\*(?=[^\s*])([^*]+?)\*|(?<!\w)_(?=\S)([^_]+?)_(?!\w)|\[([^\]\n]+)\]\(([^()\s]+)\)|(https?:\/\/[^\s<>()"']+[^\s<>()"'.,;:!?])/;

/** A line's text -> nodes. */
function inline(text) {
  const found = [];
  for (let m; (m = text.match(INLINE));) {
    if (m.index) found.push(text.slice(0, m.index));
    if (m[2] !== undefined) found.push(make("code", m[2]));
    else if (m[3] !== undefined) found.push(make("strong", ...inline(m[3])));
    else if (m[4] ?? m[5]) found.push(make("em", ...inline(m[4] ?? m[5])));
    else found.push(link(m[6] ?? m[8], m[7] ?? m[8]));
    text = text.slice(m.index + m[0].length);
  }
  return text ? [...found, text] : found;
}

function link(text, address) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return `${text} (${address})`;
  const found = make("a", text);
  found.href = address;
  found.rel = "noopener noreferrer nofollow";
  found.target = "_blank";
  return found;
}

// The server: models, a model's own settings, streamed answers.
let key = sessionStorage.getItem("llamina.key") ?? "";
export const setKey = (value) => { key = value; sessionStorage.setItem("llamina.key", value); };

const headers = () => ({ "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) });

async function checked(answer) {
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const error = new Error(told?.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

const get = async (path) => (await checked(await fetch(path, { headers: headers() }))).json();
export const models = async () => (await get("v1/models")).data;
export const settings = async (model) => (await get(`props?model=${encodeURIComponent(model)}`)).default_generation_settings;

/** What the model thought while it wrote these tokens to these messages. */
export const trace = async (body) => (await checked(await fetch("trace", { method: "POST", headers: headers(), body: JSON.stringify(body) }))).json();

/** Events of a chat answer, as they come. */
export async function* chat(body, signal) {
  const answer = await checked(await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal }));
  const decoder = new TextDecoder();
  let held = "";
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    held += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = held.split("\n");
    held = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
    if (done) return;
  }
}

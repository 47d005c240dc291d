// Requests to the server: JSON in, JSON or server-sent events out.

const PATIENCE = 3; // how often a request is sent again where the server is busy

export class Problem extends Error {}

/** Ask for JSON. `body` is an object, a Blob, or nothing for a GET. */
export async function ask(path, body, { signal, patience = PATIENCE, onWait } = {}) {
  const response = await send(path, body, signal, patience, onWait);
  return await response.json();
}

/** Ask for server-sent events; `onEvent(name, data)` gets each. Returns when the last has come. */
export async function listen(path, body, onEvent, { signal, onWait } = {}) {
  const response = await send(path, body, signal, PATIENCE, onWait);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
    // An empty line ends an event.
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) dispatch(event, onEvent);
  }
}

function dispatch(event, onEvent) {
  const fields = {};
  for (const line of event.split("\n")) {
    const colon = line.indexOf(": ");
    fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  const data = JSON.parse(fields.data);
  if (fields.event === "error") throw new Problem(data.error);
  onEvent(fields.event, data);
}

async function send(path, body, signal, patience, onWait) {
  const options = { signal };
  if (body !== undefined) {
    options.method = "POST";
    options.body = body instanceof Blob ? body : JSON.stringify(body);
  }
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer. Is `tessella serve` still running?");
    }
    if (response.ok) return response;
    if (response.status === 503 && attempt < patience) {
      const seconds = Math.min(5, Number(response.headers.get("retry-after")) || 1);
      onWait?.(seconds);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      signal?.throwIfAborted();
      continue;
    }
    throw new Problem(await words(response));
  }
}

async function words(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

// Asks the sandbox provider for its counts, or changes its settings; its certificate comes from the stack's own authority,
// which fetch cannot be told.
import { request } from "node:https";

/** GET, or POST with a body; gives the JSON answer. Rejects when the answer is not 200. */
export function sandboxRequest(url: URL, ca: string, body?: object): Promise<Record<string, unknown>> {
  return new Promise((resolve, reject) => {
    const method = body === undefined ? "GET" : "POST";
    const sent = request(url, { ca, agent: false, method }, async (answer) => {
      const text = (await answer.setEncoding("utf8").toArray()).join("");
      if (answer.statusCode === 200) resolve(JSON.parse(text));
      else reject(new Error(`${url.pathname} answered ${answer.statusCode}: ${text}`));
    });
    sent.on("error", reject).end(body && JSON.stringify(body));
  });
}

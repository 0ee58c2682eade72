// The person in front of the sandbox's sign-in page, for scripts: follows an authorization URL as a browser would, with
// cookies, answers the page, and gives the address that the browser would then open. Sends nothing beyond the sandbox.
import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";

export interface ConsentOptions {
  /** The provider's authorization URL with its query, as the client made it. */
  readonly authorizationUrl: string;
  readonly decision: "allow" | "deny";
  /** Who signs in; the same name is the same person. */
  readonly name?: string;
  /** The cookies of the browser, by name: given to several calls, these are sign-ins in one browser. */
  readonly cookies?: Map<string, string>;
  /** The authority that the sandbox's certificate comes from, PEM. */
  readonly ca?: string;
}

// Authorization URL, page, way back: the redirect to the client is the third answer.
const maxSteps = 3;

interface Answer {
  readonly status: number;
  readonly location: string | undefined;
  readonly cookies: readonly string[];
  readonly text: string;
}

function send(url: URL, method: string, headers: Record<string, string>, body: string, ca?: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const requestOf = url.protocol === "https:" ? requestHttps : requestHttp;
    const options = { method, headers, agent: false, timeout: 10_000, ...(ca !== undefined && { ca }) };
    const request = requestOf(url, options, async (response) => {
      try {
        const text = (await response.setEncoding("utf8").toArray()).join("");
        const { location, "set-cookie": cookies = [] } = response.headers;
        resolve({ status: response.statusCode ?? 0, location, cookies, text });
      } catch (error) {
        reject(error);
      }
    });
    request.on("timeout", () => request.destroy(new Error("the sandbox provider did not answer within 10 s")));
    request.on("error", reject).end(body);
  });
}

/** Gives the redirect URI with its code, or with its error. Throws when the provider refuses the request itself. */
export async function answerConsent(options: ConsentOptions): Promise<string> {
  const { authorizationUrl, decision, name = "Sandbox User", cookies = new Map<string, string>(), ca } = options;
  let url = new URL(authorizationUrl);
  for (let step = 0; step < maxSteps; step += 1) {
    const isPage = url.pathname.startsWith("/interaction/");
    const body = isPage ? new URLSearchParams({ name, decision }).toString() : "";
    const cookie = [...cookies].map(([key, value]) => `${key}=${value}`).join("; ");
    const headers = {
      accept: "text/html",
      cookie,
      ...(isPage && { "content-type": "application/x-www-form-urlencoded" }),
    };
    const answer = await send(url, isPage ? "POST" : "GET", headers, body, ca);
    if (answer.location === undefined) {
      const reason = answer.text.slice(Math.max(0, answer.text.indexOf("<h1>"))).replace(/<[^>]*>/g, " ");
      throw new Error(`the sandbox provider answered ${answer.status}: ${reason.replace(/\s+/g, " ").trim()}`);
    }
    for (const [, key = "", value = ""] of answer.cookies.map((line) => /^([^=]+)=([^;]*)/.exec(line) ?? [])) {
      if (value === "") cookies.delete(key);
      else cookies.set(key, value);
    }
    const next = new URL(answer.location, url);
    if (next.origin !== url.origin) return next.href;
    url = next;
  }
  throw new Error(`the sandbox provider did not lead to the redirect URI within ${maxSteps} answers`);
}

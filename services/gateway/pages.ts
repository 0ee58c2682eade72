// Renders the pages that people see, with the headers that all of them have. No page has a script.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Eta } from "eta";
import type { FastifyReply } from "fastify";

const folder = join(import.meta.dirname, "pages");
const eta = new Eta({ views: folder, cache: true });

/** The style sheet of all pages. */
export const styleSheet = readFileSync(join(folder, "connect.css"), "utf8");

/** What the page `connect` shows: who connects what for whom, and what has to be filled in. */
export interface ConnectPage {
  readonly projectName: string;
  readonly supportEmail: string;
  readonly appName: string;
  readonly imageUrl: string;
  readonly externalUserId: string;
  readonly hasProvider: boolean;
  readonly hidden: readonly (readonly [name: string, value: string])[];
  readonly fields: readonly {
    readonly name: string;
    readonly label: string;
    readonly description: string;
    readonly secret: boolean;
    readonly required: boolean;
    readonly value: string;
    readonly error: string;
  }[];
  readonly error: string;
}

/** What the page `result` shows. */
export interface ResultPage {
  readonly successful: boolean;
  readonly title: string;
  readonly text: string;
  readonly detail: string;
}

/** Sends a page. `frameAncestors` are origins whose pages may show it in a frame. */
export function sendPage(
  reply: FastifyReply,
  status: number,
  page:
    | { readonly name: "connect"; readonly data: ConnectPage }
    | { readonly name: "result"; readonly data: ResultPage },
  frameAncestors: readonly string[] = [],
): FastifyReply {
  return reply
    .code(status)
    .headers(pageHeaders(frameAncestors))
    .type("text/html; charset=utf-8")
    .send(eta.render(page.name, page.data));
}

/** A page that says that it did not work, in the words that the users of existing clients know. */
export function sendFailure(reply: FastifyReply, status: number, text: string, detail = ""): FastifyReply {
  const data = { successful: false, title: "Not connected", text, detail };
  return sendPage(reply, status, { name: "result", data });
}

/** A page that says that it worked. */
export function sendSuccess(reply: FastifyReply): FastifyReply {
  const data = { successful: true, title: "Connected", text: "Your account is connected.", detail: "" };
  return sendPage(reply, 200, { name: "result", data });
}

/** The texts of failures. */
export const failureTexts = {
  linkExpired: "This link has expired. Please request a new one from the app developer.",
  sessionExpired: "This session has expired. Please refresh the page to try again.",
  connectionFailed: (supportEmail = "") =>
    `Connection failed. Please retry or contact support${supportEmail === "" ? "" : ` ${supportEmail}`}.`,
} as const;

/** Headers of a page, or of a redirect from one: the address holds a token, so it goes nowhere and is kept nowhere. */
export function pageHeaders(frameAncestors: readonly string[] = []): Record<string, string> {
  // An origin is a caller's text: what is not plainly one could smuggle in a directive.
  const origins = frameAncestors.filter((origin) => /^https?:\/\/[a-z0-9.-]+(:\d+)?$/i.test(origin));
  return {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "content-security-policy": [
      "default-src 'none'",
      "style-src 'self'",
      "img-src 'self' https:",
      "base-uri 'none'",
      // Browsers hold the redirects after a form to this too: the provider, and the product's own pages after it.
      "form-action 'self' https: http:",
      `frame-ancestors ${origins.length > 0 ? origins.join(" ") : "'none'"}`,
    ].join("; "),
  };
}

// Renders the pages that people see, with the headers that all of them have. A page has a script only where pages of a product
// may frame it, to tell them how it ended; all of them work without.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Eta } from "eta";
import type { FastifyReply } from "fastify";

const folder = join(import.meta.dirname, "pages");
const eta = new Eta({ views: folder, cache: true });

/** The style sheet of all pages. */
export const styleSheet = readFileSync(join(folder, "connect.css"), "utf8");

/** The script that speaks with the pages that frame ours. */
export const frameScript = readFileSync(join(folder, "connect.js"), "utf8");

/** What the script is told, as attributes of its element; pages/connect.js reads them. */
export type ScriptData = Readonly<Record<string, string>>;

/** How connecting ended, in the message that existing clients know. */
export type Outcome =
  | {
      readonly type: "success";
      /** The account; of one that is to be verified first there is none yet. */
      readonly authProvisionId: string;
      /** For the product's backend, which has to verify. */
      readonly connectionId?: string;
      readonly verifier?: string;
    }
  | { readonly type: "error"; readonly error: string };

/** What the page `started` shows: the way on to the provider, for a window that a frame has opened. */
export interface StartedPage {
  readonly title: string;
  readonly script: ScriptData;
}

/** What the page `connect` shows: who connects what for whom, and what has to be filled in. */
export interface ConnectPage {
  readonly projectName: string;
  readonly supportEmail: string;
  readonly appName: string;
  readonly imageUrl: string;
  readonly externalUserId: string;
  /** The account to be connected again; empty for a new one. */
  readonly accountId: string;
  readonly hasProvider: boolean;
  readonly hideClose: boolean;
  readonly script: ScriptData | undefined;
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
  readonly script: ScriptData | undefined;
}

/** Sends a page. `frameAncestors` are origins whose pages may show it in a frame. */
export function sendPage(
  reply: FastifyReply,
  status: number,
  page:
    | { readonly name: "connect"; readonly data: ConnectPage }
    | { readonly name: "started"; readonly data: StartedPage }
    | { readonly name: "result"; readonly data: ResultPage },
  frameAncestors: readonly string[] = [],
): FastifyReply {
  return reply
    .code(status)
    .headers(pageHeaders(frameAncestors, page.data.script !== undefined))
    .type("text/html; charset=utf-8")
    .send(eta.render(page.name, page.data));
}

/** A page that says that it did not work, in the words that the users of existing clients know. */
export function sendFailure(reply: FastifyReply, status: number, text: string, detail = ""): FastifyReply {
  const data = { successful: false, title: "Not connected", text, detail, script: undefined };
  return sendPage(reply, status, { name: "result", data });
}

/** A page that says that it worked. */
export function sendSuccess(reply: FastifyReply): FastifyReply {
  const data = { successful: true, ...connected, detail: "", script: undefined };
  return sendPage(reply, 200, { name: "result", data });
}

/**
 * A page that says how it ended and tells it to who frames it, or to the frame that opened its window; where there is nobody to
 * tell it goes to `next`.
 */
export function sendOutcome(
  reply: FastifyReply,
  outcome: Outcome,
  { origins, next }: { readonly origins: readonly string[]; readonly next: string },
): FastifyReply {
  const script = {
    role: "result",
    outcome: JSON.stringify(outcome),
    origins: JSON.stringify(soundOrigins(origins)),
    next,
  };
  const text = outcome.type === "error" ? outcome.error : connected.text;
  const title = outcome.type === "error" ? "Not connected" : connected.title;
  const data = { successful: outcome.type === "success", title, text, detail: "", script };
  return sendPage(reply, outcome.type === "error" ? 400 : 200, { name: "result", data }, origins);
}

const connected = { title: "Connected", text: "Your account is connected." } as const;

/** An origin is a caller's text: what is not plainly one could smuggle in a directive. */
export function soundOrigins(origins: readonly string[]): readonly string[] {
  return origins.filter((origin) => /^https?:\/\/[a-z0-9.-]+(:\d+)?$/i.test(origin));
}

/** The texts of failures. */
export const failureTexts = {
  linkExpired: "This link has expired. Please request a new one from the app developer.",
  sessionExpired: "This session has expired. Please refresh the page to try again.",
  connectionFailed: (supportEmail = "") =>
    `Connection failed. Please retry or contact support${supportEmail === "" ? "" : ` ${supportEmail}`}.`,
} as const;

/** Headers of a page, or of a redirect from one: the address holds a token, so it goes nowhere and is kept nowhere. */
export function pageHeaders(frameAncestors: readonly string[] = [], hasScript = false): Record<string, string> {
  const origins = soundOrigins(frameAncestors);
  return {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "content-security-policy": [
      "default-src 'none'",
      "style-src 'self'",
      ...(hasScript ? ["script-src 'self'", "connect-src 'self'"] : []),
      "img-src 'self' https:",
      "base-uri 'none'",
      // Browsers hold the redirects after a form to this too: the provider, and the product's own pages after it.
      "form-action 'self' https: http:",
      `frame-ancestors ${origins.length > 0 ? origins.join(" ") : "'none'"}`,
    ].join("; "),
  };
}

// A receiver of webhooks: a true https server on loopback that keeps what it was sent and answers as the test says.
import { once } from "node:events";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { testTls } from "./tls.ts";

/** One posting. */
export interface Posting {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  readonly receivedMs: number;
}

/** A status; or headers with it; or no answer at all. */
export type ReceiverAnswer =
  | number
  | { readonly status: number; readonly headers: Readonly<Record<string, string>> }
  | "silence";

/** Starts one on a free port, or on the port given. */
export async function startWebhookReceiver(port = 0) {
  const { key, certificate: cert, ca } = await testTls("sandbox");
  const postings: Posting[] = [];
  let answer: (posting: Posting) => ReceiverAnswer | Promise<ReceiverAnswer> = () => 200;
  const server = createServer({ key, cert }, async (request, response) => {
    try {
      const headers = Object.fromEntries(Object.entries(request.headers).map(([name, value]) => [name, String(value)]));
      const posting = {
        ...{ path: request.url ?? "", headers, body: await text(request), receivedMs: Date.now() },
      };
      postings.push(posting);
      const given = await answer(posting);
      if (given === "silence") return;
      const { status, headers: sent } = typeof given === "number" ? { status: given, headers: {} } : given;
      response.writeHead(status, sent).end("thank you");
    } catch {
      // The sender was killed while it sent.
      response.destroy();
    }
  });
  await once(server.listen(port, "127.0.0.1"), "listening");
  const host = `localhost:${(server.address() as AddressInfo).port}`;
  return {
    host,
    ca,
    postings,
    url: (path = "/hook") => `https://${host}${path}`,
    /** What it answers from now on. */
    answerWith(next: typeof answer) {
      answer = next;
    },
    async stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** A receiver at work. */
export type WebhookReceiver = Awaited<ReturnType<typeof startWebhookReceiver>>;

// Tunnels through the operator's egress proxy, for deployments whose requests must leave from fixed addresses. The proxy is
// asked for an address that was judged here, never for a name: a name would be resolved a second time, by the proxy, and could
// lead into the network in which the proxy stands. TLS runs through the tunnel to the upstream itself, under the name of the
// URL: the proxy sees an address and a port, no request and no credential of an account.
import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls, type SecureContext } from "node:tls";
import { EgressError } from "./egress-error.ts";
import type { Secret } from "./secret.ts";

/** The proxy that requests leave by. */
export interface EgressProxy {
  /** `http:` or `https:`; host and port count, nothing else. */
  readonly url: URL;
  /** `user:password`. */
  readonly credentials?: Secret;
}

/** What a tunnel is opened with. */
export interface TunnelOptions {
  readonly proxy: EgressProxy;
  /** Whom an `https:` proxy's certificate is verified against. */
  readonly secureContext: SecureContext;
  /** For all of it, the addresses' resolution included. */
  readonly timeoutMs: number;
}

// A name has several addresses so that one of them answers; after as many the proxy itself is the fault.
const maxAttempts = 4;
const maxHeadBytes = 8192;

/** A connection to the first of the addresses that the proxy reaches. Rejects with an EgressError or with the judge's own. */
export async function openTunnel(
  options: TunnelOptions,
  judge: () => Promise<readonly string[]>,
  port: number,
): Promise<Socket> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const attempt: Attempt = {};
  const timer = setTimeout(() => {
    attempt.fault = new EgressError("timeout", "The egress proxy did not open a connection in time.", false);
    attempt.socket?.destroy();
    reject(attempt.fault);
  }, options.timeoutMs);
  try {
    return await Promise.race([late, openFirst(options, judge, port, attempt)]);
  } finally {
    clearTimeout(timer);
  }
}

/** What is under way, so that a time-out can end it. */
interface Attempt {
  socket?: Socket;
  fault?: EgressError;
}

async function openFirst(
  { proxy, secureContext }: TunnelOptions,
  judge: () => Promise<readonly string[]>,
  port: number,
  attempt: Attempt,
): Promise<Socket> {
  let status = 0;
  for (const address of (await judge()).slice(0, maxAttempts)) {
    if (attempt.fault !== undefined) throw attempt.fault;
    const socket = dialProxy(proxy.url, secureContext);
    attempt.socket = socket;
    socket.write(connectRequest(`${isIP(address) === 6 ? `[${address}]` : address}:${port}`, proxy.credentials));
    status = statusOf(await readHead(socket));
    if (agrees(status)) return socket;
    socket.destroy();
  }
  throw new EgressError("connect", `The egress proxy opened no connection (${status}).`, false);
}

// The operator names the proxy, and it may stand on a private address: it is the one connection that is not judged.
function dialProxy({ protocol, hostname, port }: URL, secureContext: SecureContext): Socket {
  const host = hostname.replace(/^\[|\]$/g, "");
  const socket =
    protocol === "https:"
      ? connectTls({
          host,
          port: Number(port || 443),
          secureContext,
          rejectUnauthorized: true,
          ...(isIP(host) === 0 && { servername: host }),
        })
      : connectTcp({ host, port: Number(port || 80) });
  // Whatever breaks is seen as `close`; an error without a listener would end the process.
  socket.on("error", () => undefined);
  return socket;
}

function connectRequest(target: string, credentials: Secret | undefined): string {
  const basic = credentials && Buffer.from(credentials.reveal()).toString("base64");
  const authorization = basic === undefined ? "" : `Proxy-Authorization: Basic ${basic}\r\n`;
  return `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${authorization}\r\n`;
}

function readHead(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let head = "";
    const end = (settle: () => void) => {
      socket.off("data", onData).off("close", onClose).pause();
      settle();
    };
    const onClose = () => end(() => reject(fault(`cannot be reached (${codeOf(socket.errored)})`)));
    const onData = (chunk: Buffer) => {
      head += chunk.toString("latin1");
      const isWhole = head.includes("\r\n\r\n");
      if (!isWhole && head.length <= maxHeadBytes) return;
      // TLS clients speak first: bytes behind a head that agrees are not the upstream's.
      const isUsable = isWhole && (!agrees(statusOf(head)) || head.endsWith("\r\n\r\n"));
      if (!isUsable) socket.destroy();
      end(() => (isUsable ? resolve(head) : reject(fault("gave no valid answer"))));
    };
    socket.on("data", onData).on("close", onClose);
  });
}

function statusOf(head: string): number {
  return Number(/^HTTP\/1\.[01] (\d{3})[ \r]/.exec(head)?.[1] ?? 0);
}

function agrees(status: number): boolean {
  return status >= 200 && status <= 299;
}

function codeOf(error: Error | null): string {
  return String((error as NodeJS.ErrnoException | null)?.code ?? "closed");
}

function fault(what: string): EgressError {
  return new EgressError("connect", `The egress proxy ${what}.`, false);
}

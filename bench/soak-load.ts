// The soak's callers: small and large bodies, streams both ways, callers who leave. Each call is checked by what it did, and
// its end is told to the judge with the time in which it ran.
import { setTimeout as sleep } from "node:timers/promises";
import type { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { StatusError } from "#libs/errors.ts";
import type { Client } from "#libs/rpc.ts";
import { AccountUse } from "#proto/deputy/account/v1/accounts.ts";
import type { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { largeBytes } from "./soak-upstream.ts";

/** Whose account a call is for. Another account takes its place when it has been revoked. */
export interface Slot {
  readonly externalUserId: string;
  accountId: string;
}

/** One call that has ended. */
export interface Ended {
  readonly kind: string;
  readonly accountId: string;
  readonly startMs: number;
  readonly endMs: number;
  /** `OK` when everything was as it should be, the upstream's status, the reason of an error, or what was wrong. */
  readonly result: string;
  readonly refreshed: boolean;
}

/** What calls are made with. */
export interface Callers {
  readonly proxy: Pick<Client<typeof streamingProxyDefinition>, "forward" | "forwardStream">;
  readonly token: string;
  readonly projectId: string;
  readonly environment: Environment;
  readonly upstream: string;
  readonly slots: readonly Slot[];
  readonly onEnd: (ended: Ended) => void;
}

interface Outcome {
  readonly result: string;
  readonly refreshed: boolean;
}

/** An upstream that keeps silent costs a caller so much. */
export const timeoutMs = 3_000;

const deadlineMs = 15_000;
const leaveAfterMs = 50;
// While nothing is answered; below the 256 connections that the proxy keeps open to one origin.
const mostAtWork = 250;
const paceMs = 5;
const chunkBytes = 16_384;

// Of twenty calls in a row.
const mix = [
  ...Array<string>(8).fill("get"),
  ...Array<string>(5).fill("post"),
  ...["get large", "get large", "post large", "post large", "stream down", "stream up", "leave", "leave a stream"],
];

/** So many callers, each with its next call as soon as its last has ended. Gives the calls in a second. */
export async function measureCapacity(callers: Callers, count: number, seconds: number): Promise<number> {
  const startMs = performance.now();
  let calls = 0;
  const caller = async () => {
    while (performance.now() < startMs + seconds * 1000) {
      await makeCall(callers, calls++);
    }
  };
  await Promise.all(Array.from({ length: count }, caller));
  return calls / ((performance.now() - startMs) / 1000);
}

/** So many calls in each second, however long they take, until the signal. Gives how many were made, and held back for want of room. */
export async function keepCalling(callers: Callers, perSecond: number, until: AbortSignal) {
  const count = { made: 0, heldBack: 0 };
  const atWork = new Set<Promise<void>>();
  for (const startMs = performance.now(); !until.aborted; await sleep(paceMs)) {
    const due = Math.floor(((performance.now() - startMs) / 1000) * perSecond);
    for (let next = count.made + count.heldBack; next < due; next += 1) {
      if (atWork.size >= mostAtWork) {
        count.heldBack += 1;
        continue;
      }
      count.made += 1;
      const call = makeCall(callers, next).finally(() => atWork.delete(call));
      atWork.add(call);
    }
  }
  await Promise.all(atWork);
  return count;
}

async function makeCall(callers: Callers, index: number): Promise<void> {
  const kind = mix[index % mix.length] ?? "get";
  const slot = callers.slots[Math.floor(index / mix.length + index) % callers.slots.length];
  if (slot === undefined) throw new Error("there is no account to call for");
  const { accountId } = slot;
  const startMs = performance.now();
  const { result, refreshed } = await perform(callers, kind, { ...slot }).catch((error: unknown) => ({
    result: error instanceof StatusError ? error.reason : String(error),
    refreshed: false,
  }));
  callers.onEnd({ kind, accountId, startMs, endMs: performance.now(), result, refreshed });
}

function perform(callers: Callers, kind: string, slot: Slot): Promise<Outcome> {
  const whole = (body: Buffer) => forward(callers, slot, "POST", "/echo", body);
  switch (kind) {
    case "post":
      return whole(Buffer.from(`{"at":${Date.now()}}`));
    case "post large":
      return whole(Buffer.alloc(largeBytes, "p"));
    case "get large":
      return forward(callers, slot, "GET", "/large");
    case "stream down":
      return stream(callers, slot, "GET", 0);
    case "stream up":
      return stream(callers, slot, "POST", largeBytes);
    case "leave":
      return leave(callers, slot);
    case "leave a stream":
      return stream(callers, slot, "GET", 0, true);
    default:
      return forward(callers, slot, "GET", "/small");
  }
}

function headOf({ projectId, environment, upstream }: Callers, slot: Slot, method: string, path: string) {
  const headers: { name: string; value: string }[] = [];
  const request = { projectId, environment, ...slot, method, url: `https://${upstream}${path}`, headers, timeoutMs };
  return { ...request, body: Buffer.alloc(0), inlineCredential: undefined, use: AccountUse.UNSPECIFIED };
}

async function forward(callers: Callers, slot: Slot, method: string, path: string, body?: Buffer): Promise<Outcome> {
  const request = { ...headOf(callers, slot, method, path), ...(body && { body }) };
  const answer = await callers.proxy.forward(request, { deadlineMs: Date.now() + deadlineMs, token: callers.token });
  const { status, refreshed } = answer;
  if (status !== 200) return { result: String(status), refreshed };
  const isWhole = body ? answer.body.equals(body) : path !== "/large" || answer.body.length === largeBytes;
  return { result: isWhole ? "OK" : "WRONG BODY", refreshed };
}

async function leave(callers: Callers, slot: Slot): Promise<Outcome> {
  const { proxy, token } = callers;
  const signal = AbortSignal.timeout(leaveAfterMs);
  try {
    const options = { deadlineMs: Date.now() + deadlineMs, token, signal };
    const { status, refreshed } = await proxy.forward(headOf(callers, slot, "GET", "/slow"), options);
    return { result: status === 200 ? "NOT CANCELLED" : String(status), refreshed };
  } catch (error) {
    if (error instanceof StatusError && error.code === "CANCELLED") return { result: "OK", refreshed: false };
    throw error;
  }
}

/** Streams so many bytes up, or a large answer down; leaves after the first piece of it where it is told to. */
async function stream(callers: Callers, slot: Slot, method: string, bytes: number, leaves = false): Promise<Outcome> {
  const options = { deadlineMs: Date.now() + deadlineMs, token: callers.token };
  const wanted = method === "GET" ? largeBytes : bytes;
  const path = method === "GET" ? "/large" : "/echo";
  let [status, refreshed, received] = [0, false, 0];
  for await (const { piece } of callers.proxy.forwardStream(
    pieces(headOf(callers, slot, method, path), bytes),
    options,
  )) {
    if (piece?.$case === "head") ({ status, refreshed } = piece.value);
    if (piece?.$case === "chunk") received += piece.value.length;
    if (leaves && received > 0) return { result: "OK", refreshed };
  }
  if (status !== 200) return { result: String(status), refreshed };
  return { result: received === wanted ? "OK" : "WRONG BODY", refreshed };
}

async function* pieces(head: ReturnType<typeof headOf>, bytes: number): AsyncGenerator<ForwardStreamRequest> {
  yield { piece: { $case: "head", value: head } };
  for (let sent = 0; sent < bytes; sent += chunkBytes) {
    const value = Buffer.alloc(Math.min(chunkBytes, bytes - sent), "s");
    yield { piece: { $case: "chunk", value } };
  }
}

// ForwardStream: one request with bodies of any size, both ways at once, in constant memory. The upstream is read as fast as
// the caller takes the answer, and the caller as fast as the upstream takes the body. The lease's hold lasts as long as the
// stream: revoking the account breaks it off. A caller who leaves ends the upstream's connection at once, and whatever ends
// the one side early ends the other.
//
// A request is sent with the first chunk of its body, or when the caller ends its side without one: then it can be repeated
// like one of Forward. GET and HEAD, which have no body, are sent at once. With a body it can be repeated until the first of it
// has left: when its lease ends while it waits for a connection, or there is none to be had.
import type { EgressStream } from "#libs/egress.ts";
import { EgressError, egressStatusError } from "#libs/egress-error.ts";
import { invalidField, StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import type {
  ForwardRequest,
  ForwardStreamRequest,
  ForwardStreamResponse,
} from "#proto/deputy/proxy/v1/proxy_service.ts";
import { maxJudgedBytes, needsBody } from "./auth-failure.ts";
import { passedOn } from "./body-memory.ts";
import { type CallerBody, callerBody, idleTimeoutMs, inTime, type Pieces } from "./caller-body.ts";
import type { ForwardCollaborators } from "./forward.ts";
import { type Leased, withLease } from "./lease-client.ts";
import { bodilessMethods, checkForm, maxTimeoutMs } from "./outgoing-request.ts";
import { redactor } from "./redaction.ts";
import { newTally, refreshIfRefused, type Sending, sendLeased, type Tally } from "./send-leased.ts";

// Kept back from the caller's deadline, so that an upstream's time-out is told as such before the call itself ends.
const reserveMs = 50;

/** An answer whose head has come, and the lease by which it was had. */
interface Opened {
  readonly answer: EgressStream;
  /** What was taken of the body in order to judge it. */
  readonly read: Buffer;
  readonly leased: Leased;
  readonly upstreamDurationMs: number;
}

interface Streamed {
  readonly request: ForwardRequest;
  readonly body: CallerBody | undefined;
  readonly tally: Tally;
  /** When the answer must have ended. */
  readonly endMs: number;
}

/** Sends one request on behalf of an account, and gives the answer piece by piece. */
export async function* forwardStream(
  collaborators: ForwardCollaborators,
  input: AsyncIterable<ForwardStreamRequest>,
  call: Call,
): AsyncGenerator<ForwardStreamResponse> {
  const pieces = input[Symbol.asyncIterator]();
  const request = headOf(await inTime(pieces.next()));
  checkForm(request);
  const leave = await collaborators.limits.enter(request);
  try {
    yield* answerPieces(collaborators, request, pieces, call);
  } finally {
    leave();
  }
}

async function* answerPieces(
  collaborators: ForwardCollaborators,
  request: ForwardRequest,
  pieces: Pieces,
  call: Call,
): AsyncGenerator<ForwardStreamResponse> {
  const body = bodilessMethods.includes(request.method) ? undefined : await callerBody(pieces);
  const tally = newTally();
  const opened = Promise.withResolvers<Opened>();
  const over = Promise.withResolvers<void>();
  let revoked: AbortSignal | undefined;
  // The lease is held until the answer has been passed on.
  const leasing = { ...call, deadlineMs: Math.min(call.deadlineMs, collaborators.now() + maxTimeoutMs) };
  const holding = withLease(collaborators, request, leasing, async (leased) => {
    revoked = leased.hold.signal;
    const stream = { request, body, tally, endMs: call.deadlineMs - reserveMs };
    opened.resolve(await openAnswer(collaborators, stream, leased, leasing));
    await over.promise;
  });
  holding.catch(opened.reject);
  try {
    const { answer, read, leased, upstreamDurationMs } = await opened.promise;
    const { attempts, refreshed } = tally;
    const clean = redactor(leased.lease);
    const pairs = (headers: EgressStream["headers"]) =>
      clean.headers(headers).map(([name, value]) => ({ name, value }));
    const { status, headers } = answer;
    const head = { status, headers: pairs(headers), body: empty, attempts, refreshed, upstreamDurationMs };
    yield { piece: { $case: "head", value: head } };
    if (read.length > 0) yield* chunkOf(clean.push(read));
    for await (const chunk of answer.body) {
      passedOn(chunk);
      yield* chunkOf(clean.push(chunk));
    }
    yield* chunkOf(clean.end());
    yield { piece: { $case: "end", value: { trailers: pairs(answer.trailers()) } } };
  } catch (error) {
    throw body?.fault() ?? brokenBy(call.signal, revoked) ?? told(error, request.method);
  } finally {
    over.resolve();
    body?.close();
    opened.promise.then(
      ({ answer }) => answer.body.destroy(),
      () => undefined,
    );
  }
}

/** Why a stream was broken off from our side, when it was. */
function brokenBy(...signals: readonly (AbortSignal | undefined)[]): StatusError | undefined {
  return signals.map((signal) => signal?.reason).find((reason) => reason instanceof StatusError);
}

const empty = Buffer.alloc(0);

function* chunkOf(bytes: Buffer): Generator<ForwardStreamResponse> {
  if (bytes.length > 0) yield { piece: { $case: "chunk", value: bytes } };
}

async function openAnswer(
  { vault, egress, compose, now }: ForwardCollaborators,
  { request, body, tally, endMs }: Streamed,
  leased: Leased,
  call: Call,
): Promise<Opened> {
  const limits = { headTimeoutMs: request.timeoutMs || maxTimeoutMs, idleTimeoutMs };
  const sending: Sending<EgressStream> = {
    ...{ request, compose, tally, isWhole: () => body?.isWhole() ?? true },
    send: (outgoing) =>
      egress.open({ ...outgoing, ...(body && { body: body.open() }), ...limits, totalTimeoutMs: endMs - now() }),
  };
  const sentMs = now();
  const answer = await sendLeased(sending, leased, call);
  const upstreamDurationMs = now() - sentMs;
  try {
    const { status, headers } = answer;
    const isJudged = sending.isWhole() && needsBody({ status, headers }, leased.lease.authFailureRules);
    const read = isJudged && isShort(answer) ? Buffer.concat(await answer.body.toArray()) : empty;
    await refreshIfRefused(vault, sending, request, leased, call, { status, headers, body: read });
    return { answer, read, leased, upstreamDurationMs };
  } catch (error) {
    answer.body.destroy();
    throw error;
  }
}

/** Whether the whole body can be waited for: its length is known, and that of a refusal. */
function isShort({ headers }: EgressStream): boolean {
  const length = headers.find(([name]) => name === "content-length")?.[1];
  return length !== undefined && Number(length) <= maxJudgedBytes;
}

function headOf({ value, done }: IteratorResult<ForwardStreamRequest, unknown>): ForwardRequest {
  if (done === true || value.piece?.$case !== "head") throw invalidField("head", "is required as the first message");
  if (value.piece.value.body.length > 0) throw invalidField("head.body", "comes in chunks after the head");
  return value.piece.value;
}

function told(error: unknown, method: string): unknown {
  return error instanceof EgressError ? egressStatusError(error, method) : error;
}

// The body of a request that its caller streams. Until the request has a connection, nothing of it is taken but its first chunk:
// one that is withdrawn before can be begun anew.
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { invalidField, StatusError } from "#libs/errors.ts";
import { passedOn } from "./body-memory.ts";

/** A message of the caller's: a chunk, after the head. */
interface Piece {
  readonly piece?: { readonly $case: string; readonly value: unknown } | undefined;
}

/** What the caller sends. */
export type Pieces = AsyncIterator<Piece>;

/** A body whose first chunk is there. */
export interface CallerBody {
  /** The body from its beginning, for one attempt. Not after it is no longer whole. */
  open(): Readable;
  /** Whether nothing of it was taken but the first chunk, which is kept. */
  isWhole(): boolean;
  /** What was wrong with a later message. */
  fault(): StatusError | undefined;
  /** Takes no more of it. */
  close(): void;
}

/** Longer than the silences of event streams, whose servers send a comment every 15 to 30 seconds. */
export const idleTimeoutMs = 60_000;
// As much of the body as is read ahead of the upstream.
const bufferBytes = 65_536;

/** Waits for the first chunk; undefined when the caller ends without one. */
export async function callerBody(pieces: Pieces): Promise<CallerBody | undefined> {
  let first = chunkIn(await inTime(pieces.next()));
  if (first === undefined) return undefined;
  let fault: StatusError | undefined;
  let current: Readable | undefined;

  function takeNext(stream: Readable): void {
    first = undefined;
    pieces
      .next()
      .then((piece) => stream.push(chunkIn(piece) ?? null))
      .catch((error: unknown) => {
        if (error instanceof StatusError) fault = error;
        stream.destroy(error instanceof Error ? error : undefined);
      });
  }

  return {
    open() {
      let isBegun = false;
      const stream: Readable = new Readable({
        highWaterMark: bufferBytes,
        read() {
          if (isBegun) return takeNext(stream);
          // The HTTP client looks for it before it asks whether it may start.
          isBegun = true;
          stream.push(first);
        },
      });
      // Told by `fault`, and to the request while there is one; where nobody listens it would end the process.
      stream.on("error", () => undefined);
      current = stream;
      return stream;
    },
    isWhole: () => first !== undefined,
    fault: () => fault,
    close: () => void current?.destroy(),
  };
}

/** The chunk; undefined at the end. */
function chunkIn({ value, done }: IteratorResult<Piece, unknown>): Buffer | undefined {
  if (done === true) return undefined;
  if (value.piece?.$case !== "chunk") throw invalidField("chunk", "is required in every message after the first");
  const chunk = value.piece.value as Buffer;
  passedOn(chunk);
  return chunk;
}

/** A caller who opens a stream and says nothing must not keep it. */
export async function inTime<Value>(work: Promise<Value>): Promise<Value> {
  const timer = new AbortController();
  const late = sleep(idleTimeoutMs, undefined, { signal: timer.signal }).then(() => {
    throw new StatusError("DEADLINE_EXCEEDED", "STREAM_IDLE", `No message came for ${idleTimeoutMs} ms.`);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    late.catch(() => undefined);
    timer.abort();
  }
}

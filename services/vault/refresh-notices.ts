// Tells all vault processes that credentials were refreshed, so that proxies which hold leases of them hear it. Best effort: a
// notice that is lost costs nobody more than the rest of a lease. Many go in one notification, so that the loop's mass refreshes
// cost the database next to nothing; a notification holds ids and no secret, for others may listen.
import { z } from "zod";

/** A credential that was refreshed. */
export interface RefreshNotice {
  readonly projectId: string;
  readonly accountId: string;
  /** Whether the access token of before works no more. */
  readonly accessEnded: boolean;
}

/** The notices of one process, in both directions. */
export interface RefreshNotices {
  /** Tells all processes, this one included. */
  tell(notice: RefreshNotice): void;
  /** Takes what a process has told. */
  hear(payload: string): void;
  /** Calls the listener with each notice; gives what ends that. */
  listen(listener: (notice: RefreshNotice) => void): () => void;
}

const gatherMs = 10;
// Postgres takes less than 8000 bytes.
const mostBytes = 7_000;

const payloadShape = z.array(z.tuple([z.string(), z.string(), z.boolean()]));

/** Makes them over what sends a payload, and may fail to. */
export function refreshNotices(send: (payload: string) => Promise<unknown>): RefreshNotices {
  const listeners = new Set<(notice: RefreshNotice) => void>();
  let gathered: string[] = [];

  function sendGathered(): void {
    const parts = gathered;
    gathered = [];
    while (parts.length > 0) {
      let bytes = 0;
      const end = parts.findIndex((part) => {
        bytes += Buffer.byteLength(part) + 1;
        return bytes > mostBytes;
      });
      const payload = `[${parts.splice(0, end < 0 ? parts.length : Math.max(1, end)).join()}]`;
      send(payload).catch(() => undefined);
    }
  }

  return {
    tell({ projectId, accountId, accessEnded }) {
      if (gathered.length === 0) setTimeout(sendGathered, gatherMs);
      gathered.push(JSON.stringify([projectId, accountId, accessEnded]));
    },
    hear(payload) {
      for (const [projectId, accountId, accessEnded] of readPayload(payload)) {
        for (const listener of listeners) listener({ projectId, accountId, accessEnded });
      }
    },
    listen(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}

/** Empty for what is none of ours: whoever may connect to the database can notify. */
function readPayload(payload: string): z.infer<typeof payloadShape> {
  try {
    return payloadShape.safeParse(JSON.parse(payload)).data ?? [];
  } catch {
    return [];
  }
}

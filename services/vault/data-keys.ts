// Data keys: made, wrapped by the provider, and kept unwrapped for a few minutes, so that a warm account costs no call to
// a remote key service and outlives its short outages. The price: a process can use a key up to five minutes after it was
// shredded, were somebody to hand it the deleted row.
import { type KeyObject, randomBytes } from "node:crypto";
import { newDataKey } from "./envelope.ts";
import type { DataKeyOwner, KekProvider, WrappedDataKey } from "./keyring.ts";

const lifetimeMs = 5 * 60_000;
// About 5 MB at a few hundred bytes an entry.
const maxEntries = 10_000;

/** The columns of a row that together are its data key. */
export interface DataKeyRow extends DataKeyOwner, WrappedDataKey {}

export interface DataKeys {
  /** A new data key for one record. `accountId` is the record's own id, as in the envelope's context. */
  create(accountId: string): Promise<DataKeyRow & { readonly key: KeyObject }>;
  /** The key of a stored row: DATA_LOSS when the row does not hold together, `SEALED` when its KEK is not available. */
  unwrap(row: DataKeyRow): Promise<KeyObject>;
}

/** `now` gives milliseconds of a clock that does not go back. */
export function dataKeys({ provider, now }: { readonly provider: KekProvider; now(): number }): DataKeys {
  // Oldest first: an entry's life is not prolonged by use, so that a KEK that was taken away stops working in time.
  const cache = new Map<string, { readonly key: Promise<KeyObject>; readonly expireTimeMs: number }>();

  function dropExpired(): void {
    for (const [name, { expireTimeMs }] of cache) {
      if (expireTimeMs > now()) return;
      cache.delete(name);
    }
  }

  return {
    async create(accountId) {
      const key = newDataKey();
      const dataKeyId = `dk_${randomBytes(16).toString("hex")}`;
      const { kekId, wrappedDataKey } = await provider.wrap(key, { dataKeyId, accountId });
      return { dataKeyId, accountId, kekId, wrappedDataKey, key };
    },
    unwrap(row) {
      dropExpired();
      const name = cacheName(row);
      const hit = cache.get(name);
      if (hit !== undefined) return hit.key;
      for (const oldest of cache.keys()) {
        if (cache.size < maxEntries) break;
        cache.delete(oldest);
      }
      // The promise is kept, not the key, so that callers at the same time share one call; a failure is not kept.
      const entry = { key: provider.unwrap(row, row), expireTimeMs: now() + lifetimeMs };
      cache.set(name, entry);
      entry.key.catch(() => {
        if (cache.get(name) === entry) cache.delete(name);
      });
      return entry.key;
    },
  };
}

/** All of the row, not its id alone: a hit must never pass a row that a miss would refuse. */
function cacheName({ dataKeyId, accountId, kekId, wrappedDataKey }: DataKeyRow): string {
  return JSON.stringify([dataKeyId, accountId, kekId, wrappedDataKey.toString("base64")]);
}

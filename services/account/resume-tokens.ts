// Resume tokens of WatchAccounts: where a stream is, as a text. Opaque to callers, and worth nothing: no right is in it.
import { invalidField } from "#libs/errors.ts";
import type { ChangePlace } from "./account-changes.ts";
import type { AccountKey } from "./accounts.ts";

/** Where a stream is: in the list of changes, and until its snapshot is complete in that too. */
export interface StreamPlace {
  readonly place: ChangePlace;
  readonly snapshotAfter?: AccountKey | undefined;
}

export function writeResumeToken({ place, snapshotAfter: key }: StreamPlace): string {
  const parts = [place.history, place.xact, place.number, ...(key === undefined ? [] : [key.projectId, key.id])];
  return Buffer.from(parts.join(" ")).toString("base64url");
}

export function readResumeToken(token: string): StreamPlace {
  const text = Buffer.from(token, "base64url").toString();
  const parts = /^([\w-]{1,50}) (\d{1,19}) (\d{1,18})(?: (\w{0,64}) (\w{0,64}))?$/.exec(text);
  const [, history, xact, number, projectId, id] = parts ?? [];
  if (history === undefined || xact === undefined || number === undefined) {
    throw invalidField("resume_token", "is not one that a stream gave");
  }
  const snapshotAfter = projectId === undefined || id === undefined ? undefined : { projectId, id };
  return { place: { history, xact: BigInt(xact), number: BigInt(number) }, snapshotAfter };
}

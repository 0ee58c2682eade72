// Seals values for rows and opens them again: the envelope and the data keys in one step. A value is JSON under a schema
// name, which is part of what is authenticated, so that one shape is never read as another.
import { StatusError } from "#libs/errors.ts";
import type { DataKeyRow, DataKeys } from "./data-keys.ts";
import { open, type Purpose, seal } from "./envelope.ts";

/** The columns that a sealed row has while there is something to open. */
export interface SealedColumns {
  readonly blob: Buffer;
  readonly dataKeyId: string;
  readonly wrappedDataKey: Buffer;
  readonly kekId: string;
}

/** The same columns of a row whose secret may be gone. */
export type MaybeSealed = { readonly [Name in keyof SealedColumns]: SealedColumns[Name] | null };

/** The columns of a secret that is gone. */
export const wiped = { blob: null, dataKeyId: null, wrappedDataKey: null, kekId: null } as const;

/** What a sealed record belongs to. `id` is the record's own: an account, an OAuth app, an outbox row. */
export interface SecretOwner {
  readonly purpose: Purpose;
  readonly projectId: string;
  readonly environment: string;
  readonly externalUserId: string;
  readonly id: string;
  readonly appSlug: string;
}

/** A data key that is ready, so that nothing can fail between a provider's answer and its sealing. */
export type ReadyKey = Awaited<ReturnType<DataKeys["create"]>>;

/** Seals and opens. */
export interface Secrets {
  /** Makes a data key for a record. */
  prepare(owner: SecretOwner): Promise<ReadyKey>;
  /** The data key that a row is sealed under, for its next generation. */
  keyOf(owner: SecretOwner, row: MaybeSealed): Promise<ReadyKey>;
  /** Opens a row's secret. DATA_LOSS when row and blob do not belong together. */
  open<Value>(owner: SecretOwner, row: MaybeSealed & { readonly generation: bigint }): Promise<Value>;
}

/** Told of what does not open, by the reason of its DATA_LOSS; what it throws takes the place of that. */
export type OnDamage = (owner: SecretOwner, reason: string) => void;

/** Makes the sealer over the data keys. */
export function secretsOver(dataKeys: DataKeys, onDamage: OnDamage): Secrets {
  /** Once, for whatever opens a secret: a lease, a refresh, a reveal, an export. */
  async function tellDamage<Value>(owner: SecretOwner, work: () => Promise<Value>): Promise<Value> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof StatusError && error.code === "DATA_LOSS") onDamage(owner, error.reason);
      throw error;
    }
  }

  async function keyOf(owner: SecretOwner, row: MaybeSealed): Promise<ReadyKey> {
    const columns: DataKeyRow = { ...present(row), accountId: owner.id };
    return { ...columns, key: await dataKeys.unwrap(columns) };
  }

  async function openRow(owner: SecretOwner, row: MaybeSealed & { readonly generation: bigint }) {
    const { key, dataKeyId } = await keyOf(owner, row);
    const plaintext = open(key, contextOf(owner, dataKeyId, row.generation), present(row).blob);
    try {
      return JSON.parse(plaintext.toString("utf8"));
    } finally {
      plaintext.fill(0);
    }
  }

  return {
    prepare: (owner) => dataKeys.create(owner.id),
    keyOf: (owner, row) => tellDamage(owner, () => keyOf(owner, row)),
    open: (owner, row) => tellDamage(owner, () => openRow(owner, row)),
  };
}

/** Seals a value under a key that is ready. */
export function sealWith(key: ReadyKey, owner: SecretOwner, generation: bigint, value: unknown): SealedColumns {
  const { dataKeyId, wrappedDataKey, kekId } = key;
  const plaintext = Buffer.from(JSON.stringify(value));
  const blob = seal(key.key, contextOf(owner, dataKeyId, generation), plaintext);
  plaintext.fill(0);
  return { blob, dataKeyId, wrappedDataKey, kekId };
}

function contextOf({ id, purpose, ...owner }: SecretOwner, dataKeyId: string, generation: bigint) {
  const { projectId, environment, externalUserId, appSlug } = owner;
  const schema = `${purpose}/1`;
  return { purpose, schema, projectId, environment, externalUserId, accountId: id, appSlug, dataKeyId, generation };
}

function present({ blob, dataKeyId, wrappedDataKey, kekId }: MaybeSealed): SealedColumns {
  if (blob === null || dataKeyId === null || wrappedDataKey === null || kekId === null) {
    throw new StatusError("DATA_LOSS", "SECRET_MISSING", "The stored secret is not there any more.");
  }
  return { blob, dataKeyId, wrappedDataKey, kekId };
}

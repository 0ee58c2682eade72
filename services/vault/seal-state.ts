// Whether the vault is sealed: without its keyring, or with rows under a key-encryption key that the keyring lacks. A sealed
// vault answers nothing but its status. It makes no key and forgets none: it opens again when the keyring is back.
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import type { Gate } from "./gate.ts";
import type { KekProvider } from "./keyring.ts";
import type { VaultDatabase } from "./schema.ts";
import { countDataKeys } from "./sealed-tables.ts";

/** What is known of the keys. */
export interface KeyState {
  /** Why the vault is sealed, for the operator; undefined when it is not. */
  readonly sealedReason: string | undefined;
  readonly activeKekId: string;
  /** How many rows are sealed under each key-encryption key. */
  readonly dataKeysByKek: ReadonlyMap<string, bigint>;
}

/** Watches over the keys: closed, it says FAILED_PRECONDITION `SEALED`. */
export interface SealState extends Gate {
  /** Looks now, and acts on what it finds. */
  check(): Promise<KeyState>;
  stop(): void;
}

/** Looks once, then again and again. */
export async function watchSealState(options: {
  readonly db: VaultDatabase;
  readonly provider: KekProvider;
  readonly log: Logger;
  readonly intervalMs: number;
}): Promise<SealState> {
  const { db, provider, log, intervalMs } = options;
  const listeners: ((open: boolean) => void)[] = [];
  let isOpen: boolean | undefined;
  let stored: ReadonlyMap<string, bigint> | undefined;

  function settle(state: KeyState): KeyState {
    stored = state.dataKeysByKek;
    const opens = state.sealedReason === undefined;
    if (opens !== isOpen) {
      isOpen = opens;
      if (opens) log.info({ activeKekId: state.activeKekId }, "the vault is open");
      else log.error({ sealedReason: state.sealedReason }, "the vault is sealed");
      for (const listener of listeners) listener(opens);
    }
    return state;
  }

  /** A key may be retired, after a rotation, between the count and the look at the keyring: before it seals, rows are counted again. */
  async function check(): Promise<KeyState> {
    const state = await readKeyState(await countDataKeys(db), provider);
    return settle(state.sealedReason === undefined ? state : await readKeyState(await countDataKeys(db), provider));
  }

  /** Counting reads whole indexes: an open vault goes without, as long as it has the keys that were needed before. */
  async function recheck(): Promise<KeyState> {
    const state = isOpen && stored ? await readKeyState(stored, provider) : undefined;
    return state !== undefined && state.sealedReason === undefined ? settle(state) : check();
  }

  // A key service that is away says nothing of the keys. Who was open stays so; who starts waits for it, sealed.
  await check().catch((error: unknown) => {
    if (!isKekUnavailable(error)) throw error;
    isOpen = false;
    log.warn({ err: error }, "the keys cannot be checked yet: the vault stays sealed until they can");
  });
  const timer = setInterval(() => {
    // A database that cannot be reached says nothing of the keys; calls fail by themselves meanwhile.
    recheck().catch((error: unknown) => log.warn({ err: error }, "the keys could not be checked"));
  }, intervalMs);
  return {
    requireOpen() {
      if (isOpen) return;
      throw new StatusError(
        "FAILED_PRECONDITION",
        "SEALED",
        "The vault is sealed: a key-encryption key is not available.",
      );
    },
    isOpen: () => isOpen === true,
    check,
    onChange(listener) {
      listeners.push(listener);
      listener(isOpen === true);
    },
    stop: () => clearInterval(timer),
  };
}

function isKekUnavailable(error: unknown): boolean {
  return error instanceof StatusError && error.reason === "KEK_UNAVAILABLE";
}

async function readKeyState(dataKeysByKek: ReadonlyMap<string, bigint>, provider: KekProvider): Promise<KeyState> {
  const health = await provider.health();
  if (health.kind === "sealed") return { sealedReason: health.message, activeKekId: "", dataKeysByKek };
  const { active, all } = await provider.keyIds();
  const missing = [...dataKeysByKek.keys()].filter((id) => !all.includes(id));
  const sealedReason =
    missing.length === 0 ? undefined : `stored rows need keys that the keyring has not: ${missing.join(", ")}`;
  return { sealedReason, activeKekId: active, dataKeysByKek };
}

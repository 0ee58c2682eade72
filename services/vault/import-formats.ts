// What an import takes, as far as the operator has set it up: JWEs to the key of this vault, and other systems' JSON by a mapping.
import { invalidField } from "#libs/errors.ts";
import { parseRecord } from "./credential-record.ts";
import { type Mapping, readMapping } from "./import-mapping.ts";
import { decryptRecord, isJwe, type JweKey, readImportKey } from "./jwe.ts";

/** How records are read; what is not given is refused. */
export interface ImportFormats {
  readonly importKey?: JweKey;
  readonly mapping?: Mapping;
}

/** Reads the settings: a private JSON Web Key, and the path of a mapping; "" stands for not given. Throws one sentence. */
export async function readImportFormats(importKey: string, mappingFile: string): Promise<ImportFormats> {
  return {
    ...(importKey !== "" && { importKey: await readImportKey(importKey) }),
    ...(mappingFile !== "" && { mapping: readMapping(mappingFile) }),
  };
}

/** A record of either kind as a value that is still to be judged. */
export async function readRecord({ importKey, mapping }: ImportFormats, record: string): Promise<unknown> {
  if (isJwe(record)) {
    if (importKey === undefined) throw invalidField("record", "is encrypted, and DEPUTY_IMPORT_KEY_FILE is not set");
    return parseRecord(await decryptRecord(importKey, record));
  }
  if (mapping === undefined) throw invalidField("record", "is not a JWE, and DEPUTY_IMPORT_MAPPING_FILE is not set");
  return mapping(parseRecord(record));
}

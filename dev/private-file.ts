// Files of the local stack that hold keys or tokens: readable by the owner alone, and never seen half written.
import { randomBytes } from "node:crypto";
import { rename, rm, writeFile } from "node:fs/promises";

/** Replaces the file by `text` in one step: a reader, or a crash, meets the old content or the new, nothing between. */
export async function writePrivateFile(path: string, text: string, mode = 0o600): Promise<void> {
  const temporaryPath = `${path}.${randomBytes(6).toString("hex")}.tmp`;
  try {
    await writeFile(temporaryPath, text, { mode, flag: "wx", flush: true });
    await rename(temporaryPath, path);
  } catch (error) {
    await rm(temporaryPath, { force: true });
    throw error;
  }
}

// The machine that figures were measured on, as it is kept beside them.
import { availableParallelism, cpus, totalmem } from "node:os";

/** What makes figures comparable. */
export function machine() {
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    memoryGb: Math.round(totalmem() / 2 ** 30),
    node: process.version,
  };
}
